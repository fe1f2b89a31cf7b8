// The peers: what each tells of its models, its queue and its swap.
import { useMemo } from "preact/hooks";
import { count, duration } from "../../components/format";
import { Names } from "../../components/names";
import { type Column, Table } from "../../components/table";
import { state } from "../../state/events";
import type { Peer, PeerSwap } from "../../types";

interface Row extends Peer {
  id: string;
}

const COLUMNS: readonly Column<Row>[] = [
  { id: "id", title: "Peer", cell: (row) => <bdi>{row.id}</bdi>, value: (row) => row.id },
  { id: "program", title: "Program", cell: (row) => <bdi>{[row.program, row.version].filter(Boolean).join(" ")}</bdi>, optional: true },
  { id: "ready", title: "Ready there", cell: (row) => <Names names={row.ready ?? []} />, optional: true },
  { id: "running", title: "Running", cell: (row) => count(row.in_flight), value: (row) => row.in_flight },
  { id: "waiting", title: "Waiting", cell: (row) => count(row.waiting), value: (row) => row.waiting },
  { id: "now", title: "Now", cell: (row) => <Now row={row} /> },
];

/** Shows nothing where there are no peers. */
export function Peers() {
  const engines = state.value?.engines;
  const rows = useMemo(
    () => Object.entries(engines ?? {}).flatMap(([id, engine]): Row[] => (engine.peer ? [{ ...engine.peer, id }] : [])),
    [engines],
  );
  if (rows.length === 0) return null;
  return (
    <section class="card" aria-label="Peers">
      <Table caption="Peers" columns={COLUMNS} rows={rows} rowKey={(row) => row.id} initial={{ by: "id", descending: false }} />
    </section>
  );
}

function Now({ row }: { row: Row }) {
  if (row.fault) return <bdi>{row.fault}</bdi>;
  if (!row.program) return <span class="soft">not asked yet</span>;
  return <bdi>{(row.swaps ?? []).map(inWords).join("; ")}</bdi>;
}

/** Says what it does, and how long the whole takes where that is known: the time that has passed would be old at once. */
function inWords(swap: PeerSwap): string {
  return swap.expected_s ? `${swap.words} (about ${duration(swap.expected_s)})` : swap.words;
}
