// The configuration as `/admin/config` tells of it.
import type { Maybe } from "../types";

export interface ConfigFile {
  path: string;
  text: string;
  sha256: string;
  editable: boolean;
  why_not: string | null;
  is_masked: boolean;
}

export interface Problem {
  /** Such as `engines.llama.argv`; empty for a fault of the text itself. */
  path: string;
  line: Maybe<number>;
  column: Maybe<number>;
  message: string;
}

export interface Checked {
  problems: Problem[];
  /** How many there are beyond those. */
  more_problems: number;
  warnings: Problem[];
  more_warnings: number;
  diff: string;
}

export interface Saved {
  path: string;
  backup: string | null;
  sha256: string;
  reloaded: boolean;
  problem: string | null;
}

export interface Finding {
  grade: "ok" | "note" | "problem";
  subject: string;
  words: string;
  remedy: string;
}

export interface Examination {
  ok: boolean;
  findings: Finding[];
}
