#!/bin/bash
# What the image's own script does of what Plant uses: a cluster on an empty volume, its scripts, then the server.
set -eu
if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA"
    chown -R postgres:postgres /var/lib/postgresql /var/run/postgresql
    exec setpriv --reuid=postgres --regid=postgres --clear-groups "$0" "$@"
fi
server=(-c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql)
if [ "$1" = postgres ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
    chmod 0700 "$PGDATA"
    secret=$(mktemp)
    printf '%s\n' "${POSTGRES_PASSWORD:?POSTGRES_PASSWORD must be set}" >"$secret"
    # The words of the arguments are meant to be split.
    initdb --username="${POSTGRES_USER:-postgres}" --pwfile="$secret" ${POSTGRES_INITDB_ARGS:-} -D "$PGDATA"
    rm "$secret"
    printf '\nhost all all all scram-sha-256\n' >>"$PGDATA/pg_hba.conf"
    pg_ctl -D "$PGDATA" -o "-c listen_addresses='' -c unix_socket_directories=/var/run/postgresql" -w start
    for script in /docker-entrypoint-initdb.d/*.sh; do
        [ ! -e "$script" ] || bash "$script"
    done
    pg_ctl -D "$PGDATA" -m fast -w stop
fi
if [ "$1" = postgres ]; then
    exec "$@" "${server[@]}"
fi
exec "$@"
