// The page of one model.
import type { ComponentChildren } from "preact";
import { useId } from "preact/hooks";
import { bytes, context, count, duration, rate, time } from "../../components/format";
import { Lazy } from "../../components/lazy";
import { Names } from "../../components/names";
import { StateTag } from "../../components/state";
import { link, place, setParams } from "../../router";
import { load, loadCost, pin, reset, unload, unloadCost } from "../../state/actions";
import { state } from "../../state/events";
import { useLoaded } from "../../state/loaded";
import type { KeptContext, Maybe, Model } from "../../types";
import { ModelActivity } from "./activity";
import { Clients } from "./clients";
import { LastUse, isElsewhere, residentOf } from "./list";
import { ModelLog } from "./log";
import { type Setting, Settings } from "./settings";

export interface Start {
  at: number;
  took_s?: Maybe<number>;
  result?: Maybe<string>;
  error?: Maybe<string>;
}

/** What the router tells of one model, when asked. */
export interface Details {
  settings: readonly Setting[];
  command: Maybe<readonly string[]>;
  file: Maybe<string>;
  size_bytes: Maybe<number>;
  format: Maybe<string>;
  architecture: Maybe<string>;
  quantization: Maybe<string>;
  parameters: Maybe<number>;
  need_is_estimated: boolean;
  reads_tokens_per_s: number | null;
  writes_tokens_per_s: number | null;
  /** Null where no history is kept. */
  starts: Maybe<readonly Start[]>;
  last_error: Maybe<string>;
}

const loadStarts = () => import("./starts");

const TABS = [
  { name: "", title: "Settings" },
  { name: "log", title: "Log" },
  { name: "activity", title: "Activity" },
  { name: "starts", title: "Starts" },
  { name: "clients", title: "Use it" },
] as const;

export function ModelPage({ id }: { id: string }) {
  const model = state.value && Object.hasOwn(state.value.models, id) ? state.value.models[id] : undefined;
  // It is asked again whenever the model's state changes.
  const { data: details, error } = useLoaded<Details>(`/admin/models/${encodeURIComponent(id)}`, model?.state);
  if (state.value === null) return <h1>{id}</h1>;
  if (!model) {
    return (
      <>
        <h1>{id}</h1>
        <p>
          No model is called so. <a href={link("models")}>All models</a>
        </p>
      </>
    );
  }
  return (
    <>
      <p class="crumbs">
        <a href={link("models")}>Models</a>
      </p>
      <Head id={id} model={model} />
      <Facts model={model} details={details} />
      <Tabs>
        {(tab) => {
          if (tab === "log") return <ModelLog id={id} />;
          if (tab === "activity") return <ModelActivity id={id} />;
          if (tab === "clients") return <Clients id={id} model={model} />;
          if (error) return <p class="bad">{error}</p>;
          if (!details) return <p class="soft">…</p>;
          if (tab === "starts") return <Lazy load={loadStarts} props={{ starts: details.starts ?? null }} />;
          return <Settings settings={details.settings} command={details.command ?? null} />;
        }}
      </Tabs>
    </>
  );
}

function Head({ id, model }: { id: string; model: Model }) {
  const hasFailed = model.state === "failed";
  return (
    <div class="head">
      <h1>{id}</h1>
      <StateTag state={model.state} />
      <div class="buttons">
        {hasFailed && (
          <button type="button" title="Forget its failures, so that the next request starts it" onClick={() => void reset(id)}>
            Reset
          </button>
        )}
        {!isElsewhere(model) && <Residency id={id} model={model} />}
      </div>
    </div>
  );
}

/** What changes whether a model is in memory. */
function Residency({ id, model }: { id: string; model: Model }) {
  const router = state.value;
  const resident = residentOf(model);
  return (
    <>
      <button
        type="button"
        aria-pressed={resident?.pinned === true}
        title="What is pinned is neither evicted nor stopped when idle"
        onClick={() => void pin(id, !resident?.pinned)}
      >
        {resident?.pinned ? "Unpin" : "Pin"}
      </button>
      {resident ? (
        <button type="button" title={unloadCost([resident])} onClick={() => void unload(resident)}>
          Unload
        </button>
      ) : (
        <button type="button" class="primary" title={router ? loadCost(router, id) : ""} onClick={() => void load(id)}>
          Load
        </button>
      )}
    </>
  );
}

/** Says what is kept of conversations, and what it was worth. */
export function kept({ keeps, conversations, size_bytes, restores, reused_tokens }: KeptContext): string {
  if (!keeps) return "nothing: it did not use what it was given back";
  const { restored = 0, ...again } = restores;
  const reasons = Object.entries(again).map(([reason, times]) => `${times} ${reason}`);
  const tokens = Object.values(reused_tokens).reduce((sum, each) => sum + each, 0);
  return [
    `${conversations} saved${size_bytes ? `, ${bytes(size_bytes)}` : ""}`,
    `${restored} restored`,
    reasons.length ? `read again: ${reasons.join(", ")}` : "",
    tokens ? `${count(tokens)} tokens reused` : "",
  ]
    .filter(Boolean)
    .join("; ");
}

function Facts({ model, details }: { model: Model; details: Details | null }) {
  const engine = state.value?.engines[model.engine];
  const resident = residentOf(model);
  const weights = [details?.architecture, details?.quantization, details?.format].filter((each) => each != null && each !== "") as string[];
  const facts: [string, ComponentChildren][] = [
    ["Engine", engine ? `${model.engine} (${engine.type})` : model.engine],
    ["Pool", engine?.pool],
    ["Known from", model.origin],
    ["Also called", model.aliases?.length ? <Names names={model.aliases} /> : ""],
    ["Memory it needs", bytes(model.need_bytes) + (details?.need_is_estimated && model.need_bytes ? ", estimated" : "")],
    ["Memory it holds", bytes(resident?.footprint_bytes)],
    ["Context", context(model.context)],
    ["Kept of conversations", engine?.kept_context ? kept(engine.kept_context) : ""],
    ["Capabilities", model.capabilities?.length ? <Names names={model.capabilities} /> : ""],
    ["Last use", model.last_use_at == null ? "" : <LastUse at={model.last_use_at} />],
    ["Tokens/s", rate(model.tokens_per_s)],
    ["Reads, tokens/s", rate(details?.reads_tokens_per_s)],
    ["Writes, tokens/s", rate(details?.writes_tokens_per_s)],
    ["Usual start", duration(model.load_cost_s)],
    ["Usual stop", duration(model.unload_cost_s)],
    ["Loaded since", time(resident?.started_at)],
    ["Weights", weights.length ? <Names names={weights} /> : ""],
    ["Parameters", count(details?.parameters)],
    ["Size on disk", bytes(details?.size_bytes)],
    ["File", details?.file],
  ];
  return (
    <section class="card" aria-label="Facts">
      <dl class="facts">
        {facts.map(([name, value]) =>
          value ? (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{value}</dd>
            </div>
          ) : null,
        )}
      </dl>
      {details?.last_error && (
        <>
          <h2>Last error</h2>
          <pre class="bad prewrap">{details.last_error}</pre>
        </>
      )}
    </section>
  );
}

/** Shows one of several panels; which one stands in the address. */
function Tabs({ children }: { children: (tab: string) => ComponentChildren }) {
  const id = useId();
  const asked = place.value.params.get("tab") ?? "";
  const current = TABS.find((tab) => tab.name === asked) ?? TABS[0];
  const move = (event: KeyboardEvent): void => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const next = TABS[(TABS.indexOf(current) + step + TABS.length) % TABS.length] ?? TABS[0];
    setParams({ tab: next.name });
    document.getElementById(`${id}-${next.name}`)?.focus();
  };
  return (
    <section class="card">
      <div class="tabs" role="tablist" aria-label="Parts of this page" onKeyDown={move}>
        {TABS.map((tab) => (
          <button
            key={tab.name}
            id={`${id}-${tab.name}`}
            type="button"
            role="tab"
            aria-selected={tab === current}
            aria-controls={`${id}-panel`}
            tabIndex={tab === current ? 0 : -1}
            onClick={() => setParams({ tab: tab.name })}
          >
            {tab.title}
          </button>
        ))}
      </div>
      <div id={`${id}-panel`} role="tabpanel" aria-labelledby={`${id}-${current.name}`}>
        {children(current.name)}
      </div>
    </section>
  );
}
