-- The four roles, run once a cluster by its administrator (`plant up` does it locally). Passwords are set apart.
-- plant_owner migrates; plant_writer runs workers; plant_api serves ingress and reads; plant_auditor reads the log.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['plant_owner', 'plant_writer', 'plant_api', 'plant_auditor'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS NOINHERIT', name);
        END IF;
    END LOOP;
END
$$;
