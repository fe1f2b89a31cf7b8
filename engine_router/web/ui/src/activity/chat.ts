// Bodies of requests and answers as people read them: JSON with indents, and the turns of a chat.

export interface Turn {
  role: string;
  text: string;
  thinking: string;
}

type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

/** Returns a body with indents: JSON, a stream of events, or lines of JSON. What is none of these stays as it is. */
export function pretty(body: string): string {
  const whole = parsed(body);
  if (whole !== undefined) return JSON.stringify(whole, null, 2);
  return body
    .split("\n")
    .map((line) => {
      const [head, rest] = line.startsWith("data:") ? ["data: ", line.slice(5).trim()] : ["", line];
      const value = parsed(rest);
      return value === undefined || typeof value !== "object" ? line : head + JSON.stringify(value, null, 2);
    })
    .join("\n");
}

/** Returns the turns of a chat in any of the three dialects; none where it is no chat. */
export function asChat(request: string, answer: string): Turn[] {
  const asked = parsed(request);
  if (!isObject(asked)) return [];
  const turns: Turn[] = [];
  for (const name of ["system", "instructions"]) add(turns, "system", asked[name]);
  const messages = asked.messages ?? asked.input;
  if (Array.isArray(messages)) for (const each of messages) if (isObject(each)) add(turns, String(each.role ?? "user"), each.content, each);
  if (typeof messages === "string") add(turns, "user", messages);
  add(turns, "user", asked.prompt);
  if (turns.length === 0) return [];
  const said: Turn = { role: "assistant", text: "", thinking: "" };
  for (const piece of pieces(answer)) take(said, piece);
  if (said.text || said.thinking) turns.push(said);
  return turns;
}

function add(turns: Turn[], role: string, content: Json | undefined, message: { [name: string]: Json } = {}): void {
  const text = textOf(content) + calls(message.tool_calls);
  const thinking = textOf(message.reasoning_content ?? message.thinking);
  if (text || thinking) turns.push({ role, text, thinking });
}

/** Returns the JSON values of an answer: one, or those of its events or lines. */
function pieces(answer: string): Json[] {
  const whole = parsed(answer);
  if (whole !== undefined) return [whole];
  return answer
    .split("\n")
    .map((line) => parsed(line.startsWith("data:") ? line.slice(5) : line))
    .filter((value) => value !== undefined);
}

function take(said: Turn, piece: Json): void {
  if (!isObject(piece)) return;
  const choice = Array.isArray(piece.choices) ? piece.choices[0] : undefined;
  for (const part of [choice, isObject(choice) ? choice.delta : undefined, isObject(choice) ? choice.message : undefined]) takeMessage(said, part);
  takeMessage(said, piece.message);
  if (piece.type === "content_block_delta" || piece.type === "message") takeMessage(said, piece.delta ?? piece);
  if (piece.type === "response.output_text.delta") said.text += textOf(piece.delta);
  if (Array.isArray(piece.output)) for (const each of piece.output) takeMessage(said, each);
  said.text += textOf(piece.response);
}

function takeMessage(said: Turn, message: Json | undefined): void {
  if (!isObject(message)) return;
  said.text += textOf(message.content) + (typeof message.text === "string" ? message.text : "") + calls(message.tool_calls);
  said.thinking += textOf(message.reasoning_content ?? message.thinking);
}

function textOf(content: Json | undefined): string {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return "";
  return content
    .map((part) => {
      if (typeof part === "string") return part;
      if (!isObject(part)) return "";
      if (typeof part.text === "string") return part.text;
      return part.type === undefined ? "" : `[${String(part.type)}]`;
    })
    .join("");
}

function calls(list: Json | undefined): string {
  if (!Array.isArray(list)) return "";
  return list
    .map((call) => {
      const made = isObject(call) && isObject(call.function) ? call.function : {};
      const told = typeof made.arguments === "string" ? made.arguments : JSON.stringify(made.arguments ?? "");
      return made.name === undefined ? told : `\n→ ${String(made.name)} ${told}`;
    })
    .join("");
}

function isObject(value: Json | undefined): value is { [name: string]: Json } {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function parsed(text: string): Json | undefined {
  try {
    return JSON.parse(text) as Json;
  } catch {
    return undefined;
  }
}
