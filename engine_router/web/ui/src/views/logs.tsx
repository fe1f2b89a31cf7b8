// The logs of the router and of each engine, as they are written.
import { useMemo, useState } from "preact/hooks";
import { query } from "../api";
import { count } from "../components/format";
import { LONGEST, plain } from "../logs/ansi";
import type { Line } from "../logs/follower";
import { Shown, useLog } from "../logs/shown";
import { place, setParams } from "../router";
import { state } from "../state/events";

const LINES_AT_FIRST = 2000;

export default function Logs() {
  const { params } = place.value;
  const source = sourceOf(params);
  const filter = params.get("q") ?? "";
  const isRegex = params.has("regex");
  const [isPaused, setPaused] = useState(false);
  const [wraps, setWraps] = useState(true);
  const wanted = useMemo(() => wantedOf(filter, isRegex), [filter, isRegex]);
  const isRouter = "router" in source;
  const sources: readonly Source[] = params.has("both") && !isRouter ? [source, { router: "1" }] : [source];
  return (
    <>
      <h1>Logs</h1>
      <form class="filters" onSubmit={(event) => event.preventDefault()}>
        <Sources source={source} />
        <input
          type="search"
          aria-label="Only lines with"
          aria-invalid={typeof wanted === "string"}
          placeholder="Only lines with …"
          value={filter}
          onInput={(event) => setParams({ q: event.currentTarget.value })}
        />
        <button type="button" aria-pressed={isRegex} title="The words are a regular expression" onClick={() => setParams({ regex: isRegex ? "" : "1" })}>
          Regex
        </button>
        <button
          type="button"
          aria-pressed={sources.length > 1}
          disabled={isRouter}
          title={isRouter ? "Choose an engine, whose log is then shown beside the router's" : "Show the router's log beside it"}
          onClick={() => setParams({ both: sources.length > 1 ? "" : "1" })}
        >
          Router beside
        </button>
        <button type="button" aria-pressed={isPaused} onClick={() => setPaused(!isPaused)}>
          Pause
        </button>
        <button type="button" aria-pressed={wraps} onClick={() => setWraps(!wraps)}>
          Wrap
        </button>
      </form>
      {typeof wanted === "string" && <p class="bad" role="alert">{wanted}</p>}
      <div class={sources.length > 1 ? "logs double" : "logs"}>
        {sources.map((each) => (
          <Log key={nameOf(each)} source={each} wanted={typeof wanted === "string" ? null : wanted} wraps={wraps} isPaused={isPaused} />
        ))}
      </div>
    </>
  );
}

interface LogProps {
  source: Source;
  /** Tells whether a line is to be shown; null for all. */
  wanted: Wanted | null;
  wraps: boolean;
  isPaused: boolean;
}

/** One log: how many lines, and those that are wanted. */
function Log({ source, wanted, wraps, isPaused }: LogProps) {
  const [lines, problem] = useLog(`/admin/logs${query({ ...source, lines: LINES_AT_FIRST, follow: 1 })}`, isPaused);
  const found = useMemo(() => matching(lines, wanted), [lines, wanted]);
  return (
    <section aria-label={`Log of ${nameOf(source)}`}>
      <div class="filters">
        <strong>{nameOf(source)}</strong>
        <span class="soft" role="status">
          {wanted ? `${count(found.length)} of ${count(lines.length)} lines` : `${count(lines.length)} lines`}
        </span>
        <button type="button" disabled={found.length === 0} aria-label={`Download the log of ${nameOf(source)}`} onClick={() => download(found, nameOf(source))}>
          Download
        </button>
      </div>
      {problem && <p class="bad" role="alert">{problem}</p>}
      <Shown lines={found} label="Log" wraps={wraps} isFollowed={!isPaused} />
    </section>
  );
}

type Source = { router: "1" } | { engine: string } | { model: string };

const nameOf = (source: Source): string => ("router" in source ? "router" : Object.values(source)[0] ?? "");

function sourceOf(params: URLSearchParams): Source {
  const [engine, model] = [params.get("engine"), params.get("model")];
  if (engine) return { engine };
  return model ? { model } : { router: "1" };
}

function Sources({ source }: { source: Source }) {
  const engines = Object.keys(state.value?.engines ?? {});
  const value = "engine" in source ? `engine ${source.engine}` : "model" in source ? `model ${source.model}` : "router";
  const choose = (chosen: string): void => {
    const [kind, name = ""] = [chosen.split(" ", 1)[0], chosen.slice(chosen.indexOf(" ") + 1)];
    setParams({ engine: kind === "engine" ? name : "", model: kind === "model" ? name : "" });
  };
  return (
    <select aria-label="Whose log" value={value} onChange={(event) => choose(event.currentTarget.value)}>
      <option value="router">the router</option>
      {engines.map((name) => (
        <option key={name} value={`engine ${name}`}>
          {name}
        </option>
      ))}
      {"model" in source && <option value={value}>{source.model}</option>}
    </select>
  );
}

type Wanted = (line: string) => boolean;

/** Returns what a filter wants; null for everything, and in words why it is no regular expression. */
export function wantedOf(filter: string, isRegex: boolean): Wanted | string | null {
  if (filter === "") return null;
  if (!isRegex) {
    const words = filter.toLowerCase();
    return (line) => line.toLowerCase().includes(words);
  }
  try {
    const pattern = new RegExp(filter, "i");
    // A pattern may take very long for a long line; beyond this nothing of one is shown.
    return (line) => pattern.test(line.slice(0, LONGEST));
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** Returns the lines that are wanted, by what can be seen of them. */
export function matching(lines: readonly Line[], wanted: Wanted | null): readonly Line[] {
  return wanted === null ? lines : lines.filter(({ text }) => wanted(plain(text)));
}

function download(lines: readonly Line[], name: string): void {
  const url = URL.createObjectURL(new Blob([lines.map(({ text }) => `${plain(text)}\n`).join("")], { type: "text/plain" }));
  const anchor = document.createElement("a");
  [anchor.href, anchor.download] = [url, `${name.replace(/[^\w.-]+/g, "_")}.log`];
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
