import OpenAI from "openai";
import { PARAMETERS, collect, impatient, main, saying } from "./asking.js";

const client = (at) =>
  new OpenAI({ apiKey: "k", baseURL: `${at.url}/v1`, maxRetries: at.retries, fetch: impatient(at) });
const tools = [{ type: "function", function: { name: "weather", parameters: PARAMETERS } }];
const toldCalls = (message) =>
  JSON.stringify(message.tool_calls.map((call) => [call.id, call.function.name, JSON.parse(call.function.arguments)]));

await main({
  async chat(at, text) {
    const whole = await client(at).chat.completions.create({ model: at.model, messages: saying(text) });
    return whole.choices[0].message.content;
  },
  async chatStream(at, text) {
    const request = { model: at.model, messages: saying(text), stream: true };
    const chunks = await collect(await client(at).chat.completions.create(request));
    if (!chunks.some((chunk) => chunk.choices[0]?.finish_reason)) throw new Error("no end");
    return chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join("");
  },
  async completionStream(at, text) {
    const request = { model: at.model, prompt: text, stream: true };
    const chunks = await collect(await client(at).completions.create(request));
    return chunks.map((chunk) => chunk.choices[0]?.text ?? "").join("");
  },
  async response(at, text) {
    return (await client(at).responses.create({ model: at.model, input: text })).output_text;
  },
  async responseStream(at, text) {
    return (await client(at).responses.stream({ model: at.model, input: text }).finalResponse()).output_text;
  },
  async tools(at, text) {
    const whole = await client(at).chat.completions.create({ model: at.model, messages: saying(text), tools });
    return toldCalls(whole.choices[0].message);
  },
  async toolsStream(at, text) {
    const stream = client(at).chat.completions.stream({ model: at.model, messages: saying(text), tools });
    return toldCalls((await stream.finalChatCompletion()).choices[0].message);
  },
  async vectors(at, text) {
    const { data } = await client(at).embeddings.create({ model: at.model, input: text });
    return JSON.stringify(data.map((entry) => entry.embedding));
  },
});
