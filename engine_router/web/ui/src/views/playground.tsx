// The playground: chat with one model, or with two side by side; and what else models do. Kept in this browser only.
import { useEffect, useRef, useState } from "preact/hooks";
import { get } from "../api";
import { attempt } from "../components/toast";
import { keep, kept, NO_SETTINGS, NUMBERS, type Settings } from "../playground/conversation";
import { Form, type Kind, KINDS } from "../playground/forms";
import { Panel, type PanelHandle } from "../playground/panel";
import { place, setParams } from "../router";
import { state } from "../state/events";

export default function Playground() {
  const models = useModels();
  const kind = (place.value.params.get("kind") ?? "chat") as Kind | "chat";
  return (
    <>
      <h1>Playground</h1>
      <div class="buttons filters" role="group" aria-label="What to try">
        {Object.entries({ chat: "Chat", ...KINDS }).map(([name, title]) => (
          <button key={name} type="button" aria-pressed={name === kind} onClick={() => setParams({ kind: name === "chat" ? "" : name })}>
            {title}
          </button>
        ))}
      </div>
      {models.length === 0 ? (
        <p class="soft">There is no model to talk to yet.</p>
      ) : kind in KINDS ? (
        <Form key={kind} kind={kind as Kind} models={models} />
      ) : (
        <Chat models={models} />
      )}
    </>
  );
}

/** The models that this key may use: from the stream, or asked for where the key does not see that. */
function useModels(): readonly string[] {
  const [listed, setListed] = useState<string[]>([]);
  const names = Object.keys(state.value?.models ?? {});
  useEffect(() => {
    if (names.length === 0) void get<{ data: { id: string }[] }>("/v1/models").then(({ data }) => setListed(data.map(({ id }) => id)), () => {});
  }, [names.length]);
  return names.length > 0 ? names : listed;
}

function Chat({ models }: { models: readonly string[] }) {
  const [isDouble, setDouble] = useState(() => kept("playground.double", false));
  const [settings, setSettings] = useState<Settings>(() => ({ ...NO_SETTINGS, ...kept("playground.settings", NO_SETTINGS) }));
  const panels = [useRef<PanelHandle>(null), useRef<PanelHandle>(null)] as const;
  const each = (work: (panel: PanelHandle) => void): void => panels.forEach(({ current }) => current && work(current));
  useEffect(() => keep("playground.settings", settings), [settings]);
  useEffect(() => keep("playground.double", isDouble), [isDouble]);
  return (
    <>
      <Options settings={settings} change={(changes) => setSettings({ ...settings, ...changes })} />
      <div class={isDouble ? "panels double" : "panels"}>
        <Panel ref={panels[0]} name="left" models={models} settings={settings} />
        {isDouble && <Panel ref={panels[1]} name="right" models={models} settings={settings} />}
      </div>
      <Composer ask={(text, images) => each((panel) => panel.ask(text, images))}>
        <button type="button" aria-pressed={isDouble} onClick={() => setDouble(!isDouble)}>
          Side by side
        </button>
        <button type="button" onClick={() => each((panel) => panel.clear())}>
          New conversation
        </button>
      </Composer>
    </>
  );
}

function Options({ settings, change }: { settings: Settings; change: (changes: Partial<Settings>) => void }) {
  return (
    <details class="card options">
      <summary>System prompt and parameters</summary>
      <label>
        System prompt
        <textarea rows={2} value={settings.system} onInput={(event) => change({ system: event.currentTarget.value })} />
      </label>
      <div class="filters">
        {NUMBERS.map((name) => (
          <label key={name}>
            {name}
            <input
              type="number"
              step="any"
              size={8}
              placeholder="the engine's"
              value={settings[name]}
              onInput={(event) => change({ [name]: event.currentTarget.value })}
            />
          </label>
        ))}
      </div>
    </details>
  );
}

const LARGEST_IMAGE = 20_000_000;

function Composer({ ask, children }: { ask: (text: string, images: string[]) => void; children: preact.ComponentChildren }) {
  const [text, setText] = useState("");
  const [images, setImages] = useState<string[]>([]);
  const submit = (): void => {
    if (text.trim() === "" && images.length === 0) return;
    ask(text, images);
    setText("");
    setImages([]);
  };
  const attach = async (files: FileList | null): Promise<void> => {
    for (const file of files ?? []) await attempt(async () => setImages([...images, await asDataUrl(file)]));
  };
  return (
    <form class="composer card" onSubmit={(event) => (event.preventDefault(), submit())}>
      <textarea
        rows={3}
        aria-label="What you say"
        placeholder="Say something … (Enter sends, Shift+Enter begins a line)"
        value={text}
        onInput={(event) => setText(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            submit();
          }
        }}
      />
      <div class="buttons">
        <button type="submit" class="primary">
          Send
        </button>
        <label class="button">
          Picture{images.length > 0 && ` (${images.length})`}
          <input type="file" class="hidden" accept="image/*" multiple onChange={(event) => void attach(event.currentTarget.files)} />
        </label>
        {children}
      </div>
    </form>
  );
}

function asDataUrl(file: File): Promise<string> {
  if (file.size > LARGEST_IMAGE) throw new Error(`${file.name} is larger than 20 MB.`);
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(String(reader.result)));
    reader.addEventListener("error", () => reject(new Error(`${file.name} cannot be read.`)));
    reader.readAsDataURL(file);
  });
}
