// The table of all models, with a search and filters, which stand in the address.
import { useMemo, useState } from "preact/hooks";
import { ago, bytes, context, rate } from "../../components/format";
import { Names } from "../../components/names";
import { StateTag } from "../../components/state";
import { type Column, Table } from "../../components/table";
import { link, place, setParams } from "../../router";
import { load, loadCost, rescan, unload } from "../../state/actions";
import { useNow } from "../../state/clock";
import { state } from "../../state/events";
import type { Job, Model, Resident } from "../../types";
import { Downloads } from "../home";
import { PullDialog } from "./pull";
import { Peers } from "./peers";
import { Routes } from "./routes";

export interface Row extends Model {
  id: string;
}

const COLUMNS: readonly Column<Row>[] = [
  { id: "id", title: "Model", cell: (row) => <Name row={row} />, value: (row) => row.id },
  { id: "state", title: "State", cell: (row) => <StateTag state={row.state} />, value: (row) => row.state },
  { id: "engine", title: "Engine", cell: (row) => row.engine, value: (row) => row.engine, optional: true },
  { id: "need", title: "Memory", cell: (row) => bytes(row.need_bytes), value: (row) => row.need_bytes, numeric: true, optional: true },
  { id: "context", title: "Context", cell: (row) => context(row.context), value: (row) => row.context, numeric: true, optional: true },
  {
    id: "can",
    title: "Capabilities",
    cell: (row) => <Names names={row.capabilities ?? []} />,
    value: (row) => row.capabilities?.join(", ") || null,
    optional: true,
  },
  { id: "used", title: "Last use", cell: (row) => <LastUse at={row.last_use_at} />, value: (row) => row.last_use_at, numeric: true, optional: true },
  { id: "speed", title: "Tokens/s", cell: (row) => rate(row.tokens_per_s), value: (row) => row.tokens_per_s, numeric: true, optional: true },
  { id: "action", title: "Action", cell: (row) => <Action row={row} /> },
];

export function ModelList() {
  const [isPulling, setPulling] = useState(false);
  const { params } = place.value;
  const models = state.value?.models;
  const search = params.get("q") ?? "";
  const wanted = { state: params.get("state") ?? "", engine: params.get("engine") ?? "", can: params.get("can") ?? "" };
  const all = useMemo(() => Object.entries(models ?? {}).map(([id, model]): Row => ({ ...model, id })), [models]);
  const rows = useMemo(() => filtered(all, search, wanted), [all, search, wanted.state, wanted.engine, wanted.can]);
  const downloads = Object.values(state.value?.jobs ?? {}).filter((job: Job) => job.progress);
  return (
    <>
      <div class="head">
        <h1>Models</h1>
        <p class="soft" role="status">
          {rows.length === all.length ? all.length : `${rows.length} of ${all.length}`}
        </p>
        <div class="buttons">
          <button type="button" title="Look through the folders of models again, and ask the engines" onClick={() => void rescan()}>
            Rescan
          </button>
          <button type="button" onClick={() => setPulling(true)}>
            Pull from the hub …
          </button>
        </div>
      </div>
      {downloads.length > 0 && <Downloads jobs={downloads} />}
      <Routes />
      <Peers />
      <div class="filters" role="search">
        <input
          type="search"
          aria-label="Search models"
          placeholder="Search models"
          value={search}
          onInput={(event) => setParams({ q: event.currentTarget.value })}
        />
        <Filter label="State" name="state" value={wanted.state} values={valuesOf(all, (row) => [row.state])} />
        <Filter label="Engine" name="engine" value={wanted.engine} values={valuesOf(all, (row) => [row.engine])} />
        <Filter label="Capability" name="can" value={wanted.can} values={valuesOf(all, (row) => row.capabilities ?? [])} />
      </div>
      <section class="card" aria-label="Models">
        <Table
          caption="Models"
          columns={COLUMNS}
          rows={rows}
          rowKey={(row) => row.id}
          initial={{ by: "id", descending: false }}
          empty={all.length ? "No model is like that." : "No engine has any models yet."}
        />
      </section>
      {isPulling && <PullDialog onClose={() => setPulling(false)} />}
    </>
  );
}

/** Returns the models that a search and the filters want. All words of a search have to be somewhere in a row. */
export function filtered(rows: readonly Row[], search: string, wanted: { state: string; engine: string; can: string }): readonly Row[] {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  return rows.filter((row) => {
    if (wanted.state && row.state !== wanted.state) return false;
    if (wanted.engine && row.engine !== wanted.engine) return false;
    if (wanted.can && !row.capabilities?.includes(wanted.can)) return false;
    if (words.length === 0) return true;
    const text = [row.id, row.engine, ...(row.aliases ?? [])].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

function valuesOf(rows: readonly Row[], values: (row: Row) => readonly string[]): readonly string[] {
  return [...new Set(rows.flatMap(values))].sort();
}

function Filter({ label, name, value, values }: { label: string; name: string; value: string; values: readonly string[] }) {
  if (values.length < 2 && !value) return null;
  return (
    <select aria-label={label} value={value} onChange={(event) => setParams({ [name]: event.currentTarget.value })}>
      <option value="">{label}: any</option>
      {values.map((each) => (
        <option key={each} value={each}>
          {each}
        </option>
      ))}
    </select>
  );
}

function Name({ row }: { row: Row }) {
  return (
    <>
      <a href={link("models", row.id)}>{row.id}</a>
      {row.aliases?.length ? <div class="soft">also <Names names={row.aliases} /></div> : null}
    </>
  );
}

export function LastUse({ at }: { at: number | null | undefined }) {
  const now = useNow();
  return <>{ago(at, now)}</>;
}

/** The resident of a model, where it is present. */
export function residentOf(model: Model): Resident | undefined {
  const router = state.value;
  const pool = router?.pools[router.engines[model.engine]?.pool ?? ""];
  return pool?.residents.find((each) => each.resident === model.resident);
}

/** Tells whether a model runs elsewhere, where nobody here loads or unloads it. */
export const isElsewhere = (model: Model): boolean =>
  ["remote", "peer"].includes(state.value?.engines[model.engine]?.type ?? "");

export function Action({ row }: { row: Row }) {
  const router = state.value;
  const resident = residentOf(row);
  if (!router || isElsewhere(row)) return null;
  if (resident) {
    return (
      <button type="button" aria-label={`Unload ${row.id}`} onClick={() => void unload(resident)}>
        Unload
      </button>
    );
  }
  return (
    <button type="button" title={loadCost(router, row.id)} aria-label={`Load ${row.id}`} onClick={() => void load(row.id)}>
      Load
    </button>
  );
}
