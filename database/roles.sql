-- The nine roles, run once a cluster by its administrator (`plant up` does it locally); again, it puts right what
-- somebody has changed. Passwords are set apart.
-- plant_owner migrates; plant_writer runs workers; plant_ingress reads keys and policies for ingress; plant_operator
-- changes them; plant_api reads for readers; plant_auditor reads the log; plant_embedder computes embeddings;
-- plant_deliverer sends deliveries to endpoints; plant_endpoints changes endpoints for the API.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'plant_owner', 'plant_writer', 'plant_ingress', 'plant_operator', 'plant_api', 'plant_auditor',
        'plant_embedder', 'plant_deliverer', 'plant_endpoints'
    ] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS NOINHERIT', name);
        ELSIF EXISTS (
            SELECT FROM pg_roles WHERE rolname = name
            AND (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls OR rolinherit)
        ) THEN
            -- Only where there is something to take: an administrator who is no superuser may not even name SUPERUSER.
            EXECUTE format('ALTER ROLE %I NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS NOINHERIT', name);
        END IF;
        -- A temporary table stands in front of no table of ours.
        EXECUTE format('ALTER ROLE %I SET search_path = public, pg_temp', name);
    END LOOP;
END
$$;
