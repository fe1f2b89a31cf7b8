import { Ollama } from "ollama";
import { PARAMETERS, collect, impatient, main, saying } from "./asking.js";

const client = (at) => new Ollama({ host: at.url, fetch: impatient(at) });
const tools = [{ type: "function", function: { name: "weather", parameters: PARAMETERS } }];
const toldCalls = (messages) =>
  JSON.stringify(
    messages.flatMap((message) => message.tool_calls ?? []).map((call) => [call.function.name, call.function.arguments]),
  );

await main({
  async chat(at, text) {
    return (await client(at).chat({ model: at.model, messages: saying(text) })).message.content;
  },
  async chatStream(at, text) {
    const parts = await collect(await client(at).chat({ model: at.model, messages: saying(text), stream: true }));
    if (!parts.at(-1).done) throw new Error("no end");
    return parts.map((part) => part.message.content).join("");
  },
  async generate(at, text) {
    return (await client(at).generate({ model: at.model, prompt: text })).response;
  },
  async generateStream(at, text) {
    const parts = await collect(await client(at).generate({ model: at.model, prompt: text, stream: true }));
    return parts.map((part) => part.response).join("");
  },
  async tools(at, text) {
    return toldCalls([(await client(at).chat({ model: at.model, messages: saying(text), tools })).message]);
  },
  async toolsStream(at, text) {
    const request = { model: at.model, messages: saying(text), tools, stream: true };
    return toldCalls((await collect(await client(at).chat(request))).map((part) => part.message));
  },
  async vectors(at, text) {
    return JSON.stringify((await client(at).embed({ model: at.model, input: text })).embeddings);
  },
  async models(at) {
    const shown = await client(at).show({ model: at.model });
    const listed = (await client(at).list()).models.map((entry) => entry.model);
    const running = (await client(at).ps()).models.map((entry) => entry.model);
    return JSON.stringify([listed, running, shown.capabilities]);
  },
});
