// Send one signed webhook to Plant from Node.js 18 or later, without any package.
//
//     export PLANT_WEBHOOK_SECRET=$(plant keys add example --scheme v1a)   // or a v1 secret, without --scheme
//     node examples/producer.mjs http://127.0.0.1:8080
//
// Sending the same id and body again stores the event once, so retry on a lost connection, 429 and 503; any other answer
// is final.
import { createHmac, createPrivateKey, randomUUID, sign } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

const ATTEMPTS = 5;
const PKCS8_ED25519 = Buffer.from("302e020100300506032b657004220420", "hex"); // the bytes before the 32 of a seed

/** Return the signature of a message: v1a with a private key (whsk_), v1 with a shared secret (whsec_). */
function signature(secret, content) {
  const [, prefix, encoded] = secret.match(/^(whsk_|whsec_)?(.*)$/);
  const key = Buffer.from(encoded, "base64");
  if (prefix === "whsk_") {
    const seed = key.subarray(0, 32);
    const privateKey = createPrivateKey({ key: Buffer.concat([PKCS8_ED25519, seed]), format: "der", type: "pkcs8" });
    return `v1a,${sign(null, Buffer.from(content), privateKey).toString("base64")}`;
  }
  return `v1,${createHmac("sha256", key).update(content).digest("base64")}`;
}

/** Send one event until it is stored; resolves to its id and position. */
async function send(url, secret, type, data) {
  const id = `msg_${randomUUID()}`;
  const body = JSON.stringify({ type, timestamp: new Date().toISOString(), data });
  const path = type.replace("genesis.", "").replaceAll(".", "-");
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    // A fresh timestamp and signature for each attempt; the id and the body stay.
    const timestamp = Math.floor(Date.now() / 1000).toString();
    const headers = {
      "content-type": "application/json",
      "webhook-id": id,
      "webhook-timestamp": timestamp,
      "webhook-signature": signature(secret, `${id}.${timestamp}.${body}`),
    };
    let seconds = 2 ** attempt;
    try {
      const signal = AbortSignal.timeout(10_000);
      const answer = await fetch(`${url}/webhook/genesis/${path}`, { method: "POST", headers, body, signal });
      if (answer.status === 200) return await answer.json();
      if (answer.status !== 429 && answer.status !== 503) throw new Error(`refused: ${await answer.text()}`);
      seconds = Number(answer.headers.get("retry-after") ?? seconds);
    } catch (error) {
      if (error.message.startsWith("refused")) throw error;
      console.error(`no answer: ${error}`);
    }
    await sleep(seconds * 1000);
  }
  throw new Error("Plant did not take the event");
}

const url = process.argv[2] ?? "http://127.0.0.1:8080";
const agent = { agent_id: randomUUID(), name: "Example agent", skill_ids: [] };
try {
  console.log(JSON.stringify(await send(url, process.env.PLANT_WEBHOOK_SECRET, "genesis.agent.onboarded", agent)));
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
