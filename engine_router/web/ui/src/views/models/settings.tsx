// The settings in force of a model, where each comes from, and the command that starts it.
import { useState } from "preact/hooks";
import { Snippet, shell } from "../../components/copy";
import { type Column, Table } from "../../components/table";

export interface Setting {
  name: string;
  value: unknown;
  from?: string | null | undefined;
}

const COLUMNS: readonly Column<Setting>[] = [
  { id: "name", title: "Setting", cell: (row) => <code>{row.name}</code>, value: (row) => row.name },
  { id: "value", title: "Value", cell: (row) => <code class="prewrap">{shown(row.value)}</code> },
  { id: "from", title: "From", cell: (row) => row.from, value: (row) => row.from },
];

export function Settings({ settings, command }: { settings: readonly Setting[]; command: readonly string[] | null }) {
  const [withDefaults, setWithDefaults] = useState(false);
  const isDefault = (setting: Setting): boolean => setting.from === "default";
  return (
    <>
      <label class="check">
        <input type="checkbox" checked={withDefaults} onChange={(event) => setWithDefaults(event.currentTarget.checked)} /> defaults too
      </label>
      <Table
        caption="Settings"
        columns={COLUMNS}
        rows={withDefaults ? settings : settings.filter((each) => !isDefault(each))}
        rowKey={(row) => row.name}
        empty="All its settings are the defaults."
      />
      {command !== null && (
        <>
          <h2>Command</h2>
          <Snippet label="The command that starts it" text={command.map(shell).join(" ")} />
        </>
      )}
    </>
  );
}

/** Writes a value as one would in engines.toml; nothing for what is not set. */
export function shown(value: unknown): string {
  if (value === null) return "";
  if (Array.isArray(value)) return `[${value.map(shown).join(", ")}]`;
  if (typeof value === "object") {
    return `{ ${Object.entries(value).map(([name, each]) => `${name} = ${shown(each)}`).join(", ")} }`;
  }
  return JSON.stringify(value) ?? "";
}
