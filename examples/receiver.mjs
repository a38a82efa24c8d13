// Receive Plant's webhooks and verify each, from Node.js 18 or later, without any package.
//
//     export PLANT_WEBHOOK_SECRET=$(plant endpoints add https://hooks.example.com/plant --event-type '*')
//     node examples/receiver.mjs 8000    # behind whatever ends TLS for hooks.example.com
//
// PLANT_WEBHOOK_SECRET is the shared secret (whsec_) of a v1 key, or the public key (whpk_) of a v1a key. A delivery may
// come more than once, with the same `webhook-id`: it is handled once. Answer 2xx within 15 seconds, or the shorter
// timeout of your endpoint, once the event is kept; anything else is tried again. This example keeps ids in memory: keep
// yours where your data is.
import { createHmac, createPublicKey, timingSafeEqual, verify } from "node:crypto";
import { createServer } from "node:http";

const BODY_MAX_BYTES = 1024 * 1024;
const TOLERANCE_SECONDS = 300;
const SPKI_ED25519 = Buffer.from("302a300506032b6570032100", "hex"); // the bytes before the 32 of a public key

const [, prefix, encoded] = process.env.PLANT_WEBHOOK_SECRET.match(/^(whpk_|whsec_)?(.*)$/);
const key = Buffer.from(encoded, "base64");
const publicKey =
  prefix === "whpk_" ? createPublicKey({ key: Buffer.concat([SPKI_ED25519, key]), format: "der", type: "spki" }) : null;
const handled = new Set();

/** Return whether one of the signatures is of the message and the key. */
function isSigned(id, timestamp, signatures, body) {
  if (!id || !/^[0-9]{1,12}$/.test(timestamp ?? "")) return false;
  if (Math.abs(Date.now() / 1000 - Number(timestamp)) > TOLERANCE_SECONDS) return false;
  const content = Buffer.concat([Buffer.from(`${id}.${timestamp}.`), body]);
  const expected = publicKey ? null : createHmac("sha256", key).update(content).digest();
  return (signatures ?? "").split(" ").some((signature) => {
    const [version, value] = signature.split(",");
    const given = Buffer.from(value ?? "", "base64");
    if (publicKey) return version === "v1a" && given.length === 64 && verify(null, content, publicKey, given);
    return version === "v1" && given.length === expected.length && timingSafeEqual(given, expected);
  });
}

const server = createServer({ requestTimeout: 10_000 }, (request, response) => {
  const parts = [];
  let size = 0;
  request.on("data", (part) => {
    size += part.length;
    if (size > BODY_MAX_BYTES) response.writeHead(413).end(() => request.destroy());
    else parts.push(part);
  });
  request.on("end", () => {
    const { "webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": signatures } = request.headers;
    const body = Buffer.concat(parts);
    if (request.method !== "POST" || !isSigned(id, timestamp, signatures, body)) {
      response.writeHead(401).end();
      return;
    }
    if (!handled.has(id)) {
      console.log(JSON.stringify({ id, type: JSON.parse(body).type }));
      handled.add(id);
    }
    response.writeHead(204).end();
  });
});
server.listen(Number(process.argv[2] ?? 8000), "127.0.0.1", () => {
  console.error(`receiving at http://127.0.0.1:${server.address().port}`);
});
