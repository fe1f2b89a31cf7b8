// The requests that run or wait now.
import { post } from "../api";
import { count, counted, duration, rate } from "../components/format";
import { StateTag } from "../components/state";
import { type Column, Table } from "../components/table";
import { attempt } from "../components/toast";
import { useNow } from "../state/clock";
import { state } from "../state/events";
import { useBeat, useLoaded } from "../state/loaded";
import type { InFlight } from "./types";

const REFRESH_MS = 2000;

export function InFlightRequests() {
  const [running, waiting] = [state.value?.in_flight ?? 0, state.value?.waiting ?? 0];
  // The stream tells when requests come and go; what their tokens are is asked for while there are any.
  const beat = useBeat(REFRESH_MS, running + waiting > 0);
  const version = `${running} ${waiting} ${beat}`;
  const { data, error, reload } = useLoaded<{ requests: InFlight[] }>("/admin/requests", version, REFRESH_MS / 2);
  const now = useNow();
  const rows = data?.requests ?? [];
  return (
    <section class="card" aria-labelledby="now">
      <h2 id="now">
        Now <span class="soft">{summary(running, waiting)}</span>
      </h2>
      {error && <p class="bad">{error}</p>}
      {rows.length > 0 && (
        <Table caption="Requests in flight" columns={columns(now, reload)} rows={rows} rowKey={(row) => row.id} />
      )}
    </section>
  );
}

export function summary(running: number, waiting: number): string {
  if (running + waiting === 0) return "no request runs or waits";
  return `${running} running, ${waiting} waiting`;
}

const columns = (now: number, reload: () => void): readonly Column<InFlight>[] => [
  { id: "state", title: "State", cell: (row) => <StateTag state={row.state} />, value: (row) => row.state },
  { id: "model", title: "Model", cell: (row) => row.model, value: (row) => row.model },
  { id: "endpoint", title: "Endpoint", cell: (row) => <code>{row.endpoint}</code>, optional: true },
  { id: "client", title: "Client", cell: (row) => row.key ?? row.client, value: (row) => row.key ?? row.client },
  { id: "elapsed", title: "Elapsed", numeric: true, cell: (row) => counted(now - row.at), value: (row) => -row.at },
  { id: "first", title: "First token", numeric: true, optional: true, cell: (row) => duration(row.first_token_s) },
  { id: "tokens", title: "Tokens", numeric: true, cell: (row) => count(row.tokens_out), value: (row) => row.tokens_out },
  { id: "rate", title: "Tokens/s", numeric: true, cell: (row) => <Speed row={row} />, value: (row) => row.tokens_per_s ?? row.frames_per_s },
  { id: "cancel", title: "Action", cell: (row) => <Cancel row={row} done={reload} /> },
];

/** Shows the speed that the engine tells, which most do at the end only; until then, how fast the pieces of the answer come. */
function Speed({ row }: { row: InFlight }) {
  if (row.tokens_per_s != null || row.frames_per_s == null) return <>{rate(row.tokens_per_s)}</>;
  return <span title="Pieces of the answer in a second: most engines send one for each token">≈ {rate(row.frames_per_s)}</span>;
}

function Cancel({ row, done }: { row: InFlight; done: () => void }) {
  const cancel = (): Promise<void> =>
    attempt(() => post("/admin/cancel", { id: row.id }), `Request ${row.id} was ended.`).then(done);
  return (
    <button type="button" class="danger" aria-label={`Cancel request ${row.id}`} onClick={() => void cancel()}>
      Cancel
    </button>
  );
}
