import Anthropic from "@anthropic-ai/sdk";
import { PARAMETERS, impatient, main, saying } from "./asking.js";

const client = (at) =>
  new Anthropic({ apiKey: "k", baseURL: at.url, maxRetries: at.retries, fetch: impatient(at) });
const asked = (at, text, more) => ({ model: at.model, max_tokens: 100, messages: saying(text), ...more });
const tools = [{ name: "weather", input_schema: PARAMETERS }];
const toldText = (message) => message.content.map((block) => block.text ?? "").join("");
const toldCalls = (message) =>
  JSON.stringify(
    message.content.filter((block) => block.type === "tool_use").map((call) => [call.id, call.name, call.input]),
  );

await main({
  message: async (at, text) => toldText(await client(at).messages.create(asked(at, text))),
  messageStream: async (at, text) => toldText(await client(at).messages.stream(asked(at, text)).finalMessage()),
  tools: async (at, text) => toldCalls(await client(at).messages.create(asked(at, text, { tools }))),
  toolsStream: async (at, text) =>
    toldCalls(await client(at).messages.stream(asked(at, text, { tools })).finalMessage()),
  async tokens(at, text) {
    const counted = await client(at).messages.countTokens({ model: at.model, messages: saying(text) });
    return String(counted.input_tokens);
  },
});
