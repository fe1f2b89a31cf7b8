// The last requests for one model.
import { query } from "../../api";
import type { Past, PastPage } from "../../activity/types";
import { count, duration, rate, time } from "../../components/format";
import { type Column, Table } from "../../components/table";
import { link } from "../../router";
import { state } from "../../state/events";
import { useLoaded } from "../../state/loaded";

const SHOWN = 50;
const REFRESH_MS = 2000;

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
  const { data, error } = useLoaded<PastPage>(`/admin/activity${query({ model: id, limit: SHOWN })}`, state.value?.requests_ended, REFRESH_MS);
  if (error) return <p class="bad">{error}</p>;
  if (data === null) return <p class="soft">…</p>;
  if (!data.enabled) {
    return (
      <p class="soft">
        No history is kept: <bdi>{data.why_off}</bdi>
      </p>
    );
  }
  return (
    <>
      <Table caption="Last requests" columns={COLUMNS} rows={data.requests} rowKey={(row) => String(row.row)} empty="No request is remembered." />
      <p>
        <a href={link("activity", "", { model: id })}>All its requests</a>
      </p>
    </>
  );
}
