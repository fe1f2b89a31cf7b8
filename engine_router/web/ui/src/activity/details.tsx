// One past request: what is known of it, and its capture, where one was taken: raw, pretty, and as a chat.
import { useState } from "preact/hooks";
import { Snippet } from "../components/copy";
import { Dialog } from "../components/dialog";
import { count, duration, rate, time } from "../components/format";
import { useLoaded } from "../state/loaded";
import { asChat, pretty, type Turn } from "./chat";
import type { Capture, Past, Side } from "./types";

export function Details({ past, onClose }: { past: Past; onClose: () => void }) {
  const known: [string, string][] = [
    ["Ended", time(past.at)],
    ["Model", past.model ?? ""],
    ["Engine", past.engine ?? ""],
    ["Endpoint", past.endpoint],
    ["Key", past.key ?? ""],
    ["Client", past.client ?? ""],
    ["Status", past.status === 499 ? "the client left before the end" : String(past.status)],
    ["Tokens", tokens(past)],
    ["First token", duration(past.first_token_s)],
    ["Tokens/s", rate(past.tokens_per_s)],
    ["Waited", [past.queue_wait_s && `${duration(past.queue_wait_s)} in the queue`, past.load_wait_s && `${duration(past.load_wait_s)} for the model`].filter(Boolean).join(", ")],
    ["Whole", duration(past.duration_s)],
  ];
  return (
    <Dialog title={`Request ${past.id}`} onClose={onClose} wide>
      <dl class="facts">
        {known
          .filter(([, value]) => value !== "")
          .map(([name, value]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{value}</dd>
            </div>
          ))}
      </dl>
      {past.error && <p class="bad prewrap">{past.error}</p>}
      {past.has_capture && <Captured id={past.id} />}
      <div class="buttons end">
        <button type="button" onClick={onClose}>
          Close
        </button>
      </div>
    </Dialog>
  );
}

export function tokens(past: Past): string {
  const parts = [
    past.tokens_in != null && `${count(past.tokens_in)} in`,
    past.tokens_cached != null && `${count(past.tokens_cached)} of them cached`,
    past.tokens_out != null && `${count(past.tokens_out)} out`,
  ];
  return parts.filter(Boolean).join(", ");
}

const WAYS = { chat: "Chat", pretty: "Pretty", raw: "Raw" } as const;
type Way = keyof typeof WAYS;

function Captured({ id }: { id: string }) {
  const { data, error } = useLoaded<Capture>(`/admin/captures/${encodeURIComponent(id)}`);
  const [way, setWay] = useState<Way>("chat");
  if (error) return <p class="bad">{error}</p>;
  if (data === null) return <p class="soft">The capture is on its way …</p>;
  const turns = asChat(data.request?.body?.text ?? "", data.answer?.body?.text ?? "");
  const shown = way === "chat" && turns.length === 0 ? "pretty" : way;
  return (
    <>
      <div class="buttons" role="group" aria-label="How the capture is shown">
        {(Object.keys(WAYS) as Way[]).map((each) => (
          <button
            key={each}
            type="button"
            aria-pressed={each === shown}
            disabled={each === "chat" && turns.length === 0}
            onClick={() => setWay(each)}
          >
            {WAYS[each]}
          </button>
        ))}
      </div>
      {shown === "chat" ? (
        <Chat turns={turns} />
      ) : (
        <>
          <SideText title="Request" side={data.request} isPretty={shown === "pretty"} />
          <SideText title="Answer" side={data.answer} isPretty={shown === "pretty"} />
        </>
      )}
    </>
  );
}

function SideText({ title, side, isPretty }: { title: string; side: Side | undefined; isPretty: boolean }) {
  if (side === undefined) return null;
  const headers = Array.isArray(side.headers) ? side.headers : Object.entries(side.headers ?? {});
  const body = side.body?.text ?? side.body?.base64 ?? "";
  return (
    <>
      <h3>
        {title} {side.body?.is_truncated && <span class="tag busy">cut off</span>}
      </h3>
      {headers.length > 0 && <Snippet label={`${title}: headers`} text={headers.map(([name, value]) => `${name}: ${value}`).join("\n")} />}
      {side.body_note && <p class="soft">{side.body_note}</p>}
      {body !== "" && <Snippet label={`${title}: body`} text={isPretty ? pretty(body) : body} />}
    </>
  );
}

function Chat({ turns }: { turns: readonly Turn[] }) {
  return (
    <ol class="plain turns">
      {turns.map((turn, index) => (
        <li key={index} class={`turn ${turn.role === "user" ? "own" : ""}`}>
          <strong>{turn.role}</strong>
          {turn.thinking && <p class="prewrap soft">{turn.thinking}</p>}
          <p class="prewrap">{turn.text}</p>
        </li>
      ))}
    </ol>
  );
}
