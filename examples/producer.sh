#!/usr/bin/env bash
# Send one signed webhook to Plant with curl and openssl.
#
#     export PLANT_WEBHOOK_SECRET=$(plant keys add example)
#     examples/producer.sh http://127.0.0.1:8080
#
# Sending the same id and body again stores the event once, so retry on a lost connection, 429 and 503; any other answer
# is final. openssl gets the key as an argument, which other users of this machine can see while it runs.
set -euo pipefail

url="${1:-http://127.0.0.1:8080}"
uuid() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n' | sed -E 's/(.{8})(.{4}).(.{3}).(.{3})(.{12})/\1-\2-4\3-8\4-\5/'; }

key="$(printf '%s' "${PLANT_WEBHOOK_SECRET#whsec_}" | base64 -d | od -An -v -tx1 | tr -d ' \n')"
id="msg_$(uuid)"
body="{\"type\":\"genesis.agent.onboarded\",\"timestamp\":\"$(date -u +%Y-%m-%dT%H:%M:%SZ)\","
body+="\"data\":{\"agent_id\":\"$(uuid)\",\"name\":\"Example agent\",\"skill_ids\":[]}}"
answer="$(mktemp)"
trap 'rm -f "$answer"' EXIT

for attempt in 1 2 3 4 5; do
    # A fresh timestamp and signature for each attempt; the id and the body stay.
    timestamp="$(date +%s)"
    signature="$(printf '%s.%s.%s' "$id" "$timestamp" "$body" \
        | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" -binary | base64 | tr -d '\n')"
    status="$(curl --silent --show-error --max-time 10 --output "$answer" --write-out '%{http_code}' \
        --header 'content-type: application/json' \
        --header "webhook-id: $id" \
        --header "webhook-timestamp: $timestamp" \
        --header "webhook-signature: v1,$signature" \
        --data-binary "$body" "$url/webhook/genesis/agent-onboarded")" || status=000
    case "$status" in
        200) cat "$answer"; echo; exit 0 ;;
        000 | 429 | 503) sleep "$attempt" ;;
        *) echo "refused: $(cat "$answer")" >&2; exit 1 ;;
    esac
done
echo "Plant did not take the event" >&2
exit 1
