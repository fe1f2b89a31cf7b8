// One model and what was said with it.
import { forwardRef } from "preact/compat";
import { useEffect, useImperativeHandle, useRef, useState } from "preact/hooks";
import { send } from "../api";
import { rate } from "../components/format";
import { useNow } from "../state/clock";
import { state } from "../state/events";
import { bodyOf, keep, kept, type Message, type Settings } from "./conversation";
import { Markdown } from "./markdown";
import { events, pieceOf, withoutThoughts } from "./stream";
import { waitingWords } from "./waiting";

export interface PanelHandle {
  ask: (text: string, images: string[]) => void;
  clear: () => void;
}

interface PanelProps {
  name: string;
  models: readonly string[];
  settings: Settings;
}

export const Panel = forwardRef<PanelHandle, PanelProps>(({ name, models, settings }, handle) => {
  const [model, setModel] = useState(() => kept(`playground.${name}.model`, ""));
  const [messages, setMessages] = useState<Message[]>(() => kept(`playground.${name}`, []));
  const [stop, setStop] = useState<AbortController | null>(null);
  const end = useRef<HTMLDivElement>(null);
  const chosen = models.includes(model) ? model : (models[0] ?? "");
  useEffect(() => {
    keep(`playground.${name}`, messages);
    end.current?.scrollIntoView({ block: "nearest" });
  }, [messages, name]);
  useEffect(() => () => stop?.abort(), [stop]);
  const run = async (said: Message[]): Promise<void> => {
    stop?.abort();
    const control = new AbortController();
    setStop(control);
    setMessages([...said, { role: "assistant", text: "" }]);
    const show = (answer: Message): void => {
      if (!control.signal.aborted) setMessages([...said, answer]);
    };
    await answered(bodyOf(chosen, said, settings), control.signal, show);
    setStop((current) => (current === control ? null : current));
  };
  useImperativeHandle(handle, () => ({
    ask: (text, images) => void run([...messages, { role: "user", text, ...(images.length ? { images } : {}) }]),
    clear: () => (stop?.abort(), setStop(null), setMessages([])),
  }));
  const last = messages.length - 1;
  return (
    <section class="card panel" aria-label={`Conversation with ${chosen}`}>
      <div class="filters">
        <select
          aria-label="Model"
          value={chosen}
          onChange={(event) => {
            setModel(event.currentTarget.value);
            keep(`playground.${name}.model`, event.currentTarget.value);
          }}
        >
          {models.map((id) => (
            <option key={id} value={id}>
              {id}
            </option>
          ))}
        </select>
        {stop && (
          <button type="button" class="danger" onClick={() => (stop.abort(), setStop(null))}>
            Stop
          </button>
        )}
        {!stop && messages[last]?.role === "assistant" && (
          <button type="button" onClick={() => void run(messages.slice(0, -1))}>
            Again
          </button>
        )}
      </div>
      <ol class="plain turns" aria-live="off">
        {messages.map((message, index) => (
          <Turn key={index} message={message} waitsFor={stop && index === last ? chosen : ""} />
        ))}
      </ol>
      <div ref={end} />
    </section>
  );
});

/** Asks for an answer and shows it as it comes, until its end, an error, or an abort. */
async function answered(body: Record<string, unknown>, signal: AbortSignal, show: (answer: Message) => void): Promise<void> {
  let [raw, thinking, firstAt] = ["", "", 0];
  let [told, tokens]: [number | undefined, number | undefined] = [undefined, undefined];
  let problem = "";
  const answer = (more: Partial<Message> = {}): Message => {
    const split = withoutThoughts(raw);
    const speed = told ?? (tokens && firstAt ? (1000 * tokens) / (performance.now() - firstAt) : undefined);
    const said = speed === undefined ? {} : { speed: `${rate(speed)} tokens/s${tokens ? `, ${tokens} tokens` : ""}` };
    return { role: "assistant", text: split.text, thinking: thinking + split.thinking, ...said, ...(problem && { error: problem }), ...more };
  };
  try {
    const response = await send("/v1/chat/completions", { method: "POST", body, signal });
    if (response.body === null) return;
    for await (const data of events(response.body)) {
      const piece = pieceOf(data);
      if (piece.error) return show(answer({ error: piece.error }));
      if (!firstAt && (piece.text || piece.thinking)) firstAt = performance.now();
      raw += piece.text ?? "";
      thinking += piece.thinking ?? "";
      [told, tokens] = [piece.rate ?? told, piece.tokens ?? tokens];
      if (piece.finish === "length") problem = "cut off: the limit of tokens was reached";
      show(answer());
    }
  } catch (error) {
    if (!signal.aborted) show(answer({ error: error instanceof Error ? error.message : String(error) }));
  }
}

function Turn({ message, waitsFor }: { message: Message; waitsFor: string }) {
  const { role, text, thinking, images, speed, error } = message;
  return (
    <li class={`turn ${role === "user" ? "own" : ""}`}>
      <strong>{role === "user" ? "You" : "Model"}</strong>
      {thinking && (
        <details open={!text}>
          <summary class="soft">Thoughts</summary>
          <p class="prewrap soft">{thinking}</p>
        </details>
      )}
      {images?.map((url) => <img key={url.slice(-40)} src={url} alt="Attached" />)}
      {role === "user" ? <p class="prewrap">{text}</p> : <Markdown text={text} />}
      {waitsFor && !text && !thinking && <Waiting model={waitsFor} />}
      {error && <p class="bad">{error}</p>}
      {speed && <p class="soft speed">{speed}</p>}
    </li>
  );
}

function Waiting({ model }: { model: string }) {
  const now = useNow();
  return (
    <p class="soft" role="status">
      <bdi>{waitingWords(state.value, model, now)}</bdi> …
    </p>
  );
}
