// The last requests for one model.
import { useEffect, useState } from "preact/hooks";
import { ApiError, get, query } from "../../api";
import { count, duration, rate, time } from "../../components/format";
import { type Column, Table } from "../../components/table";
import { link } from "../../router";
import { state } from "../../state/events";
import type { Maybe } from "../../types";
import { VIEWS } from "..";

interface Past {
  id: string;
  at: number;
  endpoint?: Maybe<string>;
  key?: Maybe<string>;
  client?: Maybe<string>;
  status: number;
  tokens_in?: Maybe<number>;
  tokens_out?: Maybe<number>;
  first_token_s?: Maybe<number>;
  tokens_per_s?: Maybe<number>;
  duration_s: number;
  error?: Maybe<string>;
}

const SHOWN = 50;

const COLUMNS: readonly Column<Past>[] = [
  { id: "at", title: "Time", cell: (row) => time(row.at), short: true },
  { id: "endpoint", title: "Endpoint", cell: (row) => row.endpoint, optional: true },
  { id: "client", title: "Client", cell: (row) => row.key ?? row.client, optional: true },
  { id: "status", title: "Status", cell: (row) => <span class={row.status < 400 ? "" : "bad"} title={row.error ?? ""}>{row.status}</span>, numeric: true },
  { id: "in", title: "Tokens in", cell: (row) => count(row.tokens_in), numeric: true },
  { id: "out", title: "out", cell: (row) => count(row.tokens_out), numeric: true },
  { id: "first", title: "First token", cell: (row) => duration(row.first_token_s), numeric: true, optional: true },
  { id: "speed", title: "Tokens/s", cell: (row) => rate(row.tokens_per_s), numeric: true },
  { id: "took", title: "Took", cell: (row) => duration(row.duration_s), numeric: true },
];

export function ModelActivity({ id }: { id: string }) {
  const [past, setPast] = useState<readonly Past[] | null>(null);
  const [error, setError] = useState("");
  const ended = state.value?.requests_ended;
  useEffect(() => {
    const leaving = new AbortController();
    get<{ requests: Past[] }>(`/admin/activity${query({ model: id, limit: SHOWN })}`, leaving.signal).then(
      (answer) => setPast(answer.requests),
      (failure: unknown) => failure instanceof ApiError && setError(failure.message),
    );
    return () => leaving.abort();
  }, [id, ended]);
  if (error) return <p class="bad">{error}</p>;
  if (past === null) return <p class="soft">…</p>;
  return (
    <>
      <Table caption="Last requests" columns={COLUMNS} rows={past} rowKey={(row) => `${row.id} ${row.at}`} empty="No request is remembered." />
      {VIEWS.some((view) => view.name === "activity") && (
        <p>
          <a href={link("activity", "", { model: id })}>All its requests</a>
        </p>
      )}
    </>
  );
}
