// The place in the page, from the fragment of its address: `#/models/ID?tab=log`.
import { computed, signal } from "@preact/signals";

export interface Place {
  /** The view: the first part of the path; empty at home. */
  view: string;
  /** The rest of the path, decoded: a model's id, as a rule. */
  rest: string;
  params: URLSearchParams;
}

/** Reads a fragment such as `#/models/a%2Fb?tab=log`. */
export function parsed(hash: string): Place {
  const [path = "", search = ""] = split(hash.replace(/^#\/?/, ""), "?");
  const [view = "", rest = ""] = split(path, "/");
  return { view, rest: decoded(rest), params: new URLSearchParams(search) };
}

/** Writes the fragment of a place. */
export function link(view: string, rest = "", params: Record<string, string> = {}): string {
  const search = new URLSearchParams(Object.entries(params).filter(([, value]) => value !== "")).toString();
  return `#/${view}${rest ? `/${encodeURIComponent(rest)}` : ""}${search ? `?${search}` : ""}`;
}

function split(text: string, at: string): [string, string] {
  const index = text.indexOf(at);
  return index < 0 ? [text, ""] : [text.slice(0, index), text.slice(index + 1)];
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

const hash = signal(location.hash);
addEventListener("hashchange", () => (hash.value = location.hash));

export const place = computed(() => parsed(hash.value));

/** Goes to a place. */
export function go(view: string, rest = "", params: Record<string, string> = {}): void {
  location.hash = link(view, rest, params);
}

/** Changes parameters of the present place without a new entry in the browser's history. An empty value ends one. */
export function setParams(changes: Record<string, string>): void {
  const { view, rest, params } = parsed(location.hash);
  history.replaceState(null, "", link(view, rest, { ...Object.fromEntries(params), ...changes }));
  hash.value = location.hash;
}
