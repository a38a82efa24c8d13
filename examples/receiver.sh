#!/usr/bin/env bash
# Receive one of Plant's webhooks on stdin, verify it with openssl, and answer on stdout, as inetd would run it.
#
#     export PLANT_WEBHOOK_SECRET=$(plant endpoints add https://hooks.example.com/plant --event-type '*')
#     socat TCP-LISTEN:8000,bind=127.0.0.1,fork,reuseaddr EXEC:examples/receiver.sh
#
# PLANT_WEBHOOK_SECRET is the shared secret (whsec_) of a v1 key; receiver.mjs takes the public key of a v1a key too.
# Each verified event is a line in the file events.jsonl. A delivery may come more than once, with the same
# `webhook-id`: its id is on the line, so that whoever reads the file handles it once. openssl gets the key as an
# argument, which other users of this machine can see while it runs.
set -euo pipefail
export LC_ALL=C

if [[ "$PLANT_WEBHOOK_SECRET" == whpk_* ]]; then
    echo "PLANT_WEBHOOK_SECRET is a public key (whpk_): this takes a shared secret (whsec_); receiver.mjs both" >&2
    exit 1
fi

answer() { printf 'HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n' "$1"; exit 0; }

declare -A headers
read -r -t 10 request
while read -r -t 10 line && line="${line%$'\r'}" && [ -n "$line" ]; do
    name="${line%%:*}"
    value="${line#*:}"
    headers["${name,,}"]="${value#"${value%%[! ]*}"}"
done
case "$request" in "POST "*) ;; *) answer '405 Method Not Allowed' ;; esac

length="${headers[content-length]:-}"
[[ "$length" =~ ^[0-9]{1,7}$ ]] || answer '413 Content Too Large'
body="$(mktemp)"
trap 'rm -f "$body"' EXIT
timeout 10 head -c "$length" > "$body" || answer '408 Request Timeout'

id="${headers[webhook-id]:-}"
timestamp="${headers[webhook-timestamp]:-}"
[[ "$id" =~ ^[A-Za-z0-9_-]{1,64}$ && "$timestamp" =~ ^[1-9][0-9]{0,11}$ ]] || answer '401 Unauthorized'
age=$(($(date +%s) - timestamp))
[ "${age#-}" -le 300 ] || answer '401 Unauthorized'

key="$(printf '%s' "${PLANT_WEBHOOK_SECRET#whsec_}" | base64 -d | od -An -v -tx1 | tr -d ' \n')"
expected="$({ printf '%s.%s.' "$id" "$timestamp"; cat "$body"; } \
    | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" -binary | base64 | tr -d '\n')"
# Both are hashed before they are compared, so that the time it takes tells nothing about the right one.
digest() { printf '%s' "$1" | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" -r; }
for signature in ${headers[webhook-signature]:-}; do
    if [ "$(digest "$signature")" = "$(digest "v1,$expected")" ]; then
        printf '{"id":"%s","event":%s}\n' "$id" "$(cat "$body")" >> events.jsonl
        answer '204 No Content'
    fi
done
answer '401 Unauthorized'
