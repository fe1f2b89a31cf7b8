// The settings in force of a model, and where each comes from.
import { type Column, Table } from "../../components/table";

interface Setting {
  name: string;
  value: unknown;
  from?: string | null | undefined;
}

const COLUMNS: readonly Column<Setting>[] = [
  { id: "name", title: "Setting", cell: (row) => <code>{row.name}</code>, value: (row) => row.name },
  { id: "value", title: "Value", cell: (row) => <code class="prewrap">{shown(row.value)}</code> },
  { id: "from", title: "From", cell: (row) => row.from, value: (row) => row.from },
];

export function Settings({ settings }: { settings: readonly Setting[] }) {
  return <Table caption="Settings" columns={COLUMNS} rows={settings} rowKey={(row) => row.name} empty="It has no settings of its own." />;
}

/** Writes a value as one would in engines.toml. */
export function shown(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(shown).join(", ")}]`;
  if (typeof value === "object" && value !== null) {
    return `{ ${Object.entries(value).map(([name, each]) => `${name} = ${shown(each)}`).join(", ")} }`;
  }
  return JSON.stringify(value) ?? "";
}
