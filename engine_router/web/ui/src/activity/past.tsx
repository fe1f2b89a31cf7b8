// The requests that have ended, from the router's history: filtered, sorted and paged there.
import { useState } from "preact/hooks";
import { base, query } from "../api";
import { copy } from "../components/copy";
import { count, duration, rate, time } from "../components/format";
import { type Column, type Order, Table } from "../components/table";
import { place, setParams } from "../router";
import { state } from "../state/events";
import { useLoaded } from "../state/loaded";
import { Details } from "./details";
import { asMarkdown } from "./markdown";
import { Speeds } from "./speed";
import type { Past, PastPage } from "./types";

const PER_PAGE = 50;
const REFRESH_MS = 2000;
const TEXT_FILTERS = ["model", "endpoint", "key"] as const;
const FILTERS = [...TEXT_FILTERS, "status", "q"] as const;

export function PastRequests() {
  const [shown, setShown] = useState<Past | null>(null);
  const { params } = place.value;
  const offset = Number(params.get("offset")) || 0;
  const order: Order = { by: params.get("sort") ?? "at", descending: params.get("order") !== "asc" };
  const filters = Object.fromEntries(FILTERS.map((name) => [name, params.get(name) ?? ""]));
  const asked = { ...filters, sort: order.by, order: order.descending ? "desc" : "asc", limit: PER_PAGE, offset };
  // The first page follows what happens; on the others rows would move away under one's eyes.
  const version = offset === 0 ? state.value?.requests_ended : 0;
  const { data, error } = useLoaded<PastPage>(`/admin/activity${query(asked)}`, version, REFRESH_MS);
  const change = (changes: Record<string, string>): void => setParams({ offset: "", ...changes });
  return (
    <section class="card" aria-labelledby="past">
      <h2 id="past">Past requests</h2>
      <form class="filters" role="search" onSubmit={(event) => event.preventDefault()}>
        {TEXT_FILTERS.map((name) => (
          <Filter key={name} name={name} value={filters[name] ?? ""} change={change} />
        ))}
        <select aria-label="Status" value={filters.status} onChange={(event) => change({ status: event.currentTarget.value })}>
          <option value="">any status</option>
          <option value="ok">ok</option>
          <option value="error">errors</option>
        </select>
        <Filter name="q" label="Search in all columns" value={filters.q ?? ""} change={change} />
        <a class="button" href={`${base}/admin/activity.csv${query(filters)}`} download="activity.csv">
          CSV
        </a>
        <button type="button" disabled={!data?.requests.length} title="Copies the requests that are shown" onClick={() => void copy(asMarkdown(data?.requests ?? []))}>
          Markdown
        </button>
      </form>
      {error && <p class="bad">{error}</p>}
      {data?.enabled === false && <p class="soft">
          No history is kept: <bdi>{data.why_off}</bdi>
        </p>}
      {data !== null && (
        <>
          <Speeds filters={filters} />
          <Table
            caption="Past requests"
            columns={columns(setShown)}
            rows={data.requests}
            rowKey={(row) => String(row.row)}
            order={order}
            onOrder={({ by, descending }) => change({ sort: by, order: descending ? "" : "asc" })}
            rowClass={(row) => (isError(row) ? "failed" : "")}
            empty={Object.values(filters).some(Boolean) ? "No request is like that." : "No request has ended yet."}
          />
          <Pages page={data} go={(to) => setParams({ offset: to > 0 ? String(to) : "" })} />
        </>
      )}
      {shown && <Details past={shown} onClose={() => setShown(null)} />}
    </section>
  );
}

/** 499 is what the log of a proxy has for a client that left before the end. */
const LEFT = 499;

const isError = (row: Past): boolean => row.status >= 400 && row.status !== LEFT;

const columns = (show: (row: Past) => void): readonly Column<Past>[] => [
  { id: "at", title: "Ended", sort: "at", cell: (row) => <time dateTime={new Date(row.at * 1000).toISOString()}>{time(row.at)}</time> },
  { id: "model", title: "Model", sort: "model", cell: (row) => row.model },
  { id: "endpoint", title: "Endpoint", sort: "endpoint", optional: true, cell: (row) => <code>{row.endpoint}</code> },
  { id: "key", title: "Key", sort: "key", optional: true, cell: (row) => row.key },
  { id: "client", title: "Client", sort: "client", optional: true, cell: (row) => row.client },
  { id: "status", title: "Status", sort: "status", cell: (row) => <Status row={row} /> },
  { id: "in", title: "In", sort: "tokens_in", numeric: true, cell: (row) => count(row.tokens_in) },
  { id: "cached", title: "Cached", sort: "tokens_cached", numeric: true, optional: true, cell: (row) => count(row.tokens_cached) },
  { id: "out", title: "Out", sort: "tokens_out", numeric: true, cell: (row) => count(row.tokens_out) },
  { id: "first", title: "First token", sort: "first_token_s", numeric: true, optional: true, cell: (row) => duration(row.first_token_s) },
  { id: "rate", title: "Tokens/s", sort: "tokens_per_s", numeric: true, cell: (row) => rate(row.tokens_per_s) },
  { id: "queue", title: "Queue", sort: "queue_wait_s", numeric: true, optional: true, cell: (row) => duration(row.queue_wait_s) },
  { id: "load", title: "Load", sort: "load_wait_s", numeric: true, optional: true, cell: (row) => duration(row.load_wait_s) },
  { id: "duration", title: "Whole", sort: "duration_s", numeric: true, cell: (row) => duration(row.duration_s) },
  {
    id: "more",
    title: "Details",
    cell: (row) => (
      <button type="button" class="quiet" aria-label={`${row.has_capture ? "Body" : "More"} of request ${row.id}`} onClick={() => show(row)}>
        {row.has_capture ? "Body" : "More"}
      </button>
    ),
  },
];

function Status({ row }: { row: Past }) {
  const look = row.status === LEFT ? "" : isError(row) ? "bad" : "ok";
  return (
    <span class={`tag ${look}`} title={row.error ?? ""}>
      {row.status === LEFT ? "left" : row.status}
    </span>
  );
}

interface FilterProps {
  name: string;
  label?: string;
  value: string;
  change: (changes: Record<string, string>) => void;
}

function Filter({ name, label, value, change }: FilterProps) {
  const words = label ?? `${name.charAt(0).toUpperCase()}${name.slice(1)}`;
  return (
    <input
      type="search"
      size={name === "q" ? 24 : 12}
      aria-label={words}
      placeholder={words}
      value={value}
      onChange={(event) => change({ [name]: event.currentTarget.value.trim() })}
    />
  );
}

function Pages({ page, go }: { page: PastPage; go: (offset: number) => void }) {
  const { total, offset, limit, requests } = page;
  if (total <= limit && offset === 0) return null;
  return (
    <nav class="buttons" aria-label="Pages">
      <button type="button" disabled={offset === 0} onClick={() => go(Math.max(0, offset - limit))}>
        Newer
      </button>
      <button type="button" disabled={offset + requests.length >= total} onClick={() => go(offset + limit)}>
        Older
      </button>
      <span class="soft">
        {count(offset + Math.min(1, requests.length))} to {count(offset + requests.length)} of {count(total)}
      </span>
    </nav>
  );
}
