// Past requests as a table of Markdown, for a report or an issue.
import { inSentence } from "../components/format";
import type { Past } from "./types";

const COLUMNS = ["at", "model", "endpoint", "status", "tokens_in", "tokens_cached", "tokens_out", "first_token_s", "tokens_per_s", "queue_wait_s", "load_wait_s", "duration_s"] as const;

/** Writes requests as a table. What is in them makes no columns, lines or elements of its own. */
export function asMarkdown(rows: readonly Past[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(" | ")} |`;
  return [line(COLUMNS), line(COLUMNS.map(() => "---")), ...rows.map((row) => line(COLUMNS.map((name) => cell(name, row[name]))))].join("\n") + "\n";
}

function cell(name: string, value: string | number | null): string {
  if (value === null || value === undefined) return "";
  if (name === "at") return new Date(Number(value) * 1000).toISOString();
  return typeof value === "number" ? String(Math.round(value * 1000) / 1000) : inSentence(value).replace(/[\\`*_{}[\]<>()#|~]/g, "\\$&");
}
