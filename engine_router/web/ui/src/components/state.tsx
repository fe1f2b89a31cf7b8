// The state of an engine or a model as a tag: a colour for a glance, the word for everybody.

const LOOKS: Record<string, string> = {
  ready: "ok",
  loaded: "ok",
  starting: "busy",
  draining: "busy",
  stopping: "busy",
  settling: "busy",
  waking: "busy",
  asleep: "asleep",
  stuck: "bad",
  failed: "bad",
  error: "bad",
};

export function StateTag({ state }: { state: string }) {
  return <span class={`tag ${LOOKS[state] ?? ""}`}>{state}</span>;
}
