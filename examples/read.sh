#!/usr/bin/env bash
# Read the agents of Plant with curl, page by page; each line of the output is a page.
#
#   export PLANT_READ_TOKEN=$(plant tokens add example)
#   plant api &
#   examples/read.sh http://127.0.0.1:8082
#
# With a position behind the address, such as genesis.events/3/1041, the answer shows the record there.
set -euo pipefail

url=${1:-http://127.0.0.1:8082}
query="limit=100${2:+&at-least=$2}"
cursor=""

while true; do
    # The token goes in by a file: other users can read a command line.
    page=$(curl --silent --show-error --fail-with-body --retry 5 --header 'Prefer: wait=5' \
        --header @<(printf 'Authorization: Bearer %s' "$PLANT_READ_TOKEN") "$url/agents?$query${cursor:+&cursor=$cursor}")
    printf '%s\n' "$page"
    # A cursor has letters, digits, - and _ alone; the last page has null.
    cursor=$(printf '%s' "$page" | sed -n 's/.*"next":"\([A-Za-z0-9_-]*\)"}$/\1/p')
    [ -n "$cursor" ] || break
done
