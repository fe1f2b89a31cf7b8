// What models do besides chat: embeddings, reranking, pictures, speech, transcription. One small form for each.
import { useEffect, useState } from "preact/hooks";
import { request, send } from "../api";
import { attempt } from "../components/toast";

export type Kind = "embeddings" | "rerank" | "images" | "speech" | "transcription";

export const KINDS: Record<Kind, string> = {
  embeddings: "Embeddings",
  rerank: "Rerank",
  images: "Pictures",
  speech: "Speech",
  transcription: "Transcription",
};

export function Form({ kind, models }: { kind: Kind; models: readonly string[] }) {
  const [model, setModel] = useState(models[0] ?? "");
  const [text, setText] = useState("");
  const [query, setQuery] = useState("");
  const [file, setFile] = useState<File | null>(null);
  const [isBusy, setBusy] = useState(false);
  const [result, setResult] = useState<Result | null>(null);
  useEffect(() => () => forget(result), [result]);
  const run = async (event: Event): Promise<void> => {
    event.preventDefault();
    setBusy(true);
    await attempt(async () => setResult(await asked(kind, model, text, query, file)));
    setBusy(false);
  };
  return (
    <form class="card form" onSubmit={(event) => void run(event)}>
      <label>
        Model
        <select value={model} onChange={(event) => setModel(event.currentTarget.value)}>
          {models.map((id) => (
            <option key={id}>{id}</option>
          ))}
        </select>
      </label>
      {kind === "rerank" && (
        <label>
          Question
          <input value={query} required onInput={(event) => setQuery(event.currentTarget.value)} />
        </label>
      )}
      {kind === "transcription" ? (
        <label>
          Recording
          <input type="file" accept="audio/*" required onChange={(event) => setFile(event.currentTarget.files?.[0] ?? null)} />
        </label>
      ) : (
        <label>
          {{ embeddings: "Texts, one in a line", rerank: "Documents, one in a line", images: "What it shows", speech: "What is said" }[kind]}
          <textarea rows={4} value={text} required onInput={(event) => setText(event.currentTarget.value)} />
        </label>
      )}
      <div class="buttons">
        <button type="submit" class="primary" disabled={isBusy || model === ""}>
          {isBusy ? "Working …" : "Run"}
        </button>
      </div>
      {result && <Shown result={result} />}
    </form>
  );
}

type Result = { table: [string, string][] } | { image: string } | { audio: string } | { text: string };

async function asked(kind: Kind, model: string, text: string, query: string, file: File | null): Promise<Result> {
  const lines = text.split("\n").filter((line) => line.trim() !== "");
  const body = (more: Record<string, unknown>) => ({ method: "POST", body: { model, ...more } });
  if (kind === "embeddings") {
    const { data } = await request<{ data: { embedding: number[] }[] }>("/v1/embeddings", body({ input: lines }));
    return { table: similarities(lines, data.map(({ embedding }) => embedding)) };
  }
  if (kind === "rerank") {
    const { results } = await request<{ results: { index: number; relevance_score: number }[] }>("/v1/rerank", body({ query, documents: lines }));
    const ranked = [...results].sort((one, other) => other.relevance_score - one.relevance_score);
    return { table: ranked.map(({ index, relevance_score }) => [lines[index] ?? "", relevance_score.toFixed(4)]) };
  }
  if (kind === "images") {
    const { data } = await request<{ data: { b64_json?: string }[] }>("/v1/images/generations", body({ prompt: text, response_format: "b64_json" }));
    return { image: `data:image/png;base64,${data[0]?.b64_json ?? ""}` };
  }
  if (kind === "speech") {
    const spoken = await send("/v1/audio/speech", body({ input: text, voice: "alloy" }));
    return { audio: URL.createObjectURL(await spoken.blob()) };
  }
  const form = new FormData();
  form.append("model", model);
  if (file) form.append("file", file);
  const written = await request<{ text: string }>("/v1/audio/transcriptions", { method: "POST", body: form });
  return { text: written.text };
}

function forget(result: Result | null): void {
  if (result && "audio" in result) URL.revokeObjectURL(result.audio);
}

/** Returns how much each text is like the first one (the cosine of their vectors), and the vectors' length. */
export function similarities(texts: readonly string[], vectors: readonly number[][]): [string, string][] {
  const first = vectors[0] ?? [];
  return vectors.map((vector, index) => {
    const likeness = index === 0 ? `${vector.length} numbers` : `${cosine(first, vector).toFixed(4)} like the first`;
    return [texts[index] ?? "", likeness];
  });
}

function cosine(one: readonly number[], other: readonly number[]): number {
  const dot = (a: readonly number[], b: readonly number[]): number => a.reduce((sum, value, index) => sum + value * (b[index] ?? 0), 0);
  return dot(one, other) / (Math.sqrt(dot(one, one) * dot(other, other)) || 1);
}

function Shown({ result }: { result: Result }) {
  if ("image" in result) return <img src={result.image} alt="What the model made" />;
  if ("audio" in result) return <audio controls src={result.audio} />;
  if ("text" in result) return <p class="prewrap">{result.text}</p>;
  return (
    <table>
      <tbody>
        {result.table.map(([name, value], index) => (
          <tr key={index}>
            <td>{name}</td>
            <td class="num">{value}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
