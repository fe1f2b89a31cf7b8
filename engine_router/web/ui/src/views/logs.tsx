// The logs of the router and of each engine, as they are written.
import { useMemo, useState } from "preact/hooks";
import { query } from "../api";
import { count } from "../components/format";
import { plain } from "../logs/ansi";
import type { Line } from "../logs/follower";
import { Shown, useLog } from "../logs/shown";
import { place, setParams } from "../router";
import { state } from "../state/events";

const LINES_AT_FIRST = 2000;

export default function Logs() {
  const { params } = place.value;
  const source = sourceOf(params);
  const filter = params.get("q") ?? "";
  const [isPaused, setPaused] = useState(false);
  const [wraps, setWraps] = useState(true);
  const [lines, problem] = useLog(`/admin/logs${query({ ...source, lines: LINES_AT_FIRST, follow: 1 })}`, isPaused);
  const found = useMemo(() => matching(lines, filter), [lines, filter]);
  return (
    <>
      <h1>Logs</h1>
      <form class="filters" onSubmit={(event) => event.preventDefault()}>
        <Sources source={source} />
        <input
          type="search"
          aria-label="Only lines with"
          placeholder="Only lines with …"
          value={filter}
          onInput={(event) => setParams({ q: event.currentTarget.value })}
        />
        <button type="button" aria-pressed={isPaused} onClick={() => setPaused(!isPaused)}>
          Pause
        </button>
        <button type="button" aria-pressed={wraps} onClick={() => setWraps(!wraps)}>
          Wrap
        </button>
        <button type="button" disabled={found.length === 0} onClick={() => download(found, Object.values(source)[0] ?? "log")}>
          Download
        </button>
        <span class="soft" role="status">
          {filter ? `${count(found.length)} of ${count(lines.length)} lines` : `${count(lines.length)} lines`}
        </span>
      </form>
      {problem && <p class="bad" role="alert">{problem}</p>}
      <Shown lines={found} label="Log" wraps={wraps} isFollowed={!isPaused} />
    </>
  );
}

type Source = { router: "1" } | { engine: string } | { model: string };

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

export function matching(lines: readonly Line[], filter: string): readonly Line[] {
  if (filter === "") return lines;
  const wanted = filter.toLowerCase();
  return lines.filter(({ text }) => plain(text).toLowerCase().includes(wanted));
}

function download(lines: readonly Line[], name: string): void {
  const url = URL.createObjectURL(new Blob([lines.map(({ text }) => `${plain(text)}\n`).join("")], { type: "text/plain" }));
  const anchor = document.createElement("a");
  [anchor.href, anchor.download] = [url, `${name === "1" ? "router" : name.replace(/[^\w.-]+/g, "_")}.log`];
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
