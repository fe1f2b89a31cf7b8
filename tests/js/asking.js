// Runs ways of asking a model for text, all at once, and prints as JSON what came of each.
//
// The one argument is JSON: [{name, ask, url, model, text, idle_s, retries}, ...], `ask` being one of the ways.
import { Agent, fetch } from "undici";

/** The `fetch` of a client that gives up after so many seconds without a byte. Node's own waits for 300. */
export function impatient({ idle_s }) {
  const limit = idle_s * 1000;
  const dispatcher = new Agent({ headersTimeout: limit, bodyTimeout: limit });
  return (url, init) => fetch(url, { ...init, dispatcher });
}

export const saying = (text) => [{ role: "user", content: text }];

export const PARAMETERS = {
  type: "object",
  properties: { city: { type: "string" }, days: { type: "array", items: { type: "integer" } } },
  required: ["city"],
};

export async function collect(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

/** What an error says of itself; the messages of its causes too, for `fetch failed` says nothing. */
function told(error) {
  const messages = [];
  for (let each = error; each; each = each.cause) messages.push(each.message);
  return { kind: error.constructor.name, message: messages.join("; "), status: error.status ?? error.status_code ?? null };
}

export async function main(ways) {
  const outcomes = JSON.parse(process.argv[2]).map(async ({ name, ask, text, ...at }) => {
    const began = performance.now();
    let answer = null;
    let error = null;
    try {
      answer = await ways[ask](at, text);
    } catch (caught) {
      error = told(caught);
    }
    return [name, { answer, error, after_s: (performance.now() - began) / 1000 }];
  });
  const all = Object.fromEntries(await Promise.all(outcomes));
  // What a client left open keeps Node running.
  process.stdout.write(JSON.stringify(all), () => process.exit(0));
}
