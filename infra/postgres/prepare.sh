#!/bin/sh
# Roles, passwords, the database and its vector extension, on the server that PGHOST names, as its superuser. Doing it
# again makes what is missing and sets the passwords anew; it changes nothing else.
set -eu

administer() {
    psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 "$@"
}

administer --dbname postgres --file /plant/roles.sql
administer --dbname postgres \
    --set owner="$PLANT_OWNER_PASSWORD" --set writer="$PLANT_WRITER_PASSWORD" \
    --set ingress="$PLANT_INGRESS_PASSWORD" --set operator="$PLANT_OPERATOR_PASSWORD" \
    --set api="$PLANT_API_PASSWORD" --set auditor="$PLANT_AUDITOR_PASSWORD" \
    --set embedder="$PLANT_EMBEDDER_PASSWORD" --set deliverer="$PLANT_DELIVERER_PASSWORD" \
    --set endpoints="$PLANT_ENDPOINTS_PASSWORD" <<'SQL'
ALTER ROLE plant_owner PASSWORD :'owner';
ALTER ROLE plant_writer PASSWORD :'writer';
ALTER ROLE plant_ingress PASSWORD :'ingress';
ALTER ROLE plant_operator PASSWORD :'operator';
ALTER ROLE plant_api PASSWORD :'api';
ALTER ROLE plant_auditor PASSWORD :'auditor';
ALTER ROLE plant_embedder PASSWORD :'embedder';
ALTER ROLE plant_deliverer PASSWORD :'deliverer';
ALTER ROLE plant_endpoints PASSWORD :'endpoints';
SELECT 'CREATE DATABASE plant OWNER plant_owner' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'plant')
\gexec
REVOKE ALL ON DATABASE plant FROM PUBLIC;
GRANT CONNECT, TEMPORARY ON DATABASE plant TO plant_owner, plant_writer, plant_ingress, plant_operator, plant_api,
    plant_auditor, plant_embedder, plant_deliverer, plant_endpoints;
SQL
administer --dbname plant <<'SQL'
CREATE EXTENSION IF NOT EXISTS vector;
GRANT CREATE, USAGE ON SCHEMA public TO plant_owner;
SQL
