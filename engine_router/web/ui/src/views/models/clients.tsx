// How clients use a model: text to copy.
import { base } from "../../api";
import { Snippet, shell } from "../../components/copy";
import { session } from "../../state/session";
import type { Model } from "../../types";

interface Client {
  title: string;
  text: string;
}

export function Clients({ id, model }: { id: string; model: Model }) {
  const asksForKey = session.value?.asks_for_key === true;
  return (
    <>
      {asksForKey && <p class="soft">Put your key in the place of YOUR_KEY: the page does not know it.</p>}
      {clientsFor(location.origin + base, id, model, asksForKey).map(({ title, text }) => (
        <div key={title}>
          <h2>{title}</h2>
          <Snippet label={title} text={text} />
        </div>
      ))}
    </>
  );
}

/** Writes what each client needs. Whatever a model is called, it is quoted as the client's language wants it. */
export function clientsFor(url: string, id: string, model: Pick<Model, "context" | "capabilities">, asksForKey: boolean): readonly Client[] {
  const key = asksForKey ? "YOUR_KEY" : "none";
  const embeds = model.capabilities?.includes("embedding") && !model.capabilities.includes("completion");
  const header = asksForKey ? ` -H ${shell(`Authorization: Bearer ${key}`)}` : "";
  const body = embeds
    ? { model: id, input: "Hello" }
    : { model: id, stream: true, messages: [{ role: "user", content: "Hello" }] };
  const path = embeds ? "embeddings" : "chat/completions";
  const curl = { title: "curl", text: `curl -N ${shell(`${url}/v1/${path}`)}${header} -H 'Content-Type: application/json' \\\n  -d ${shell(JSON.stringify(body))}` };
  const python = { title: "Python", text: pythonFor(url, id, key, embeds === true) };
  if (embeds) return [curl, python];
  return [
    curl,
    python,
    { title: "Claude Code", text: claudeFor(url, id, key) },
    { title: "Codex", text: codexFor(url, id, key, model.context) },
    {
      title: "Any client of OpenAI's",
      text: [`export OPENAI_BASE_URL=${shell(`${url}/v1`)}`, `export OPENAI_API_KEY=${shell(key)}`, `export OPENAI_MODEL=${shell(id)}`].join("\n"),
    },
    { title: "Any client of Ollama's", text: `export OLLAMA_HOST=${shell(url)}\nollama run ${shell(id)}` },
  ];
}

function pythonFor(url: string, id: string, key: string, embeds: boolean): string {
  const client = `from openai import OpenAI\n\nclient = OpenAI(base_url=${literal(`${url}/v1`)}, api_key=${literal(key)})\n`;
  if (embeds) return `${client}answer = client.embeddings.create(model=${literal(id)}, input="Hello")\nprint(answer.data[0].embedding)`;
  return `${client}stream = client.chat.completions.create(
    model=${literal(id)},
    messages=[{"role": "user", "content": "Hello"}],
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)`;
}

// All tiers are one model: another would cost a swap.
function claudeFor(url: string, id: string, key: string): string {
  const names = ["ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_OPUS_MODEL", "ANTHROPIC_DEFAULT_SONNET_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL", "CLAUDE_CODE_SUBAGENT_MODEL"];
  return [
    "unset ANTHROPIC_API_KEY",
    `export ANTHROPIC_BASE_URL=${shell(url)}`,
    `export ANTHROPIC_AUTH_TOKEN=${shell(key)}`,
    ...names.map((name) => `export ${name}=${shell(id)}`),
    "claude",
  ].join("\n");
}

function codexFor(url: string, id: string, key: string, context: number | null | undefined): string {
  const provider = `model_providers.router={name="engine-router",base_url=${literal(`${url}/v1`)},wire_api="responses",env_key="ROUTER_API_KEY"}`;
  const lines = [`ROUTER_API_KEY=${shell(key)} codex`, `-c ${shell('model_provider="router"')}`, `-c ${shell(provider)}`];
  if (context != null) lines.push(`-c model_context_window=${context}`);
  return [...lines, `-m ${shell(id)}`].join(" \\\n  ");
}

/** Writes a text as a literal of Python, or of TOML. */
const literal = (text: string): string => JSON.stringify(text);
