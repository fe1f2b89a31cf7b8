// The configuration: its text, what is wrong with it as one types, and what would change before it is saved.
import { useEffect, useState } from "preact/hooks";
import { get, post, request } from "../api";
import { Dialog } from "../components/dialog";
import { attempt, toast } from "../components/toast";
import { Doctor } from "../config/doctor";
import { Difference, Editor, More } from "../config/editor";
import type { Checked, ConfigFile, Saved } from "../config/types";

const CHECK_AFTER_MS = 400;

export default function Configuration() {
  const [file, setFile] = useState<ConfigFile | null>(null);
  const [problem, setProblem] = useState("");
  const load = (): void => {
    get<ConfigFile>("/admin/config").then(
      (loaded) => (setFile(loaded), setProblem("")),
      (error: unknown) => setProblem(error instanceof Error ? error.message : String(error)),
    );
  };
  useEffect(load, []);
  return (
    <>
      <h1>Configuration</h1>
      {problem && <p class="bad" role="alert">{problem}</p>}
      {file && <Edited key={file.sha256} file={file} reload={load} />}
      <Doctor />
    </>
  );
}

function Edited({ file, reload }: { file: ConfigFile; reload: () => void }) {
  const [text, setText] = useState(file.text);
  const [isAsking, setAsking] = useState(false);
  const checked = useChecked(text);
  const isChanged = text !== file.text;
  useUnsaved(isChanged);
  const save = async (): Promise<void> => {
    const body = { text, was_sha256: file.sha256 };
    const isSaved = await attempt(async () => {
      const saved = await request<Saved>("/admin/config", { method: "PUT", body });
      if (saved.problem) toast(`Saved, but not in force: ${saved.problem}`, "error");
      else toast(saved.backup ? `Saved and in force. What was there is ${saved.backup}.` : "Saved and in force.");
    });
    setAsking(false);
    if (isSaved) reload();
  };
  return (
    <section class="card" aria-labelledby="file">
      <h2 id="file">
        <code>{file.path}</code> {!file.editable && <span class="tag">read-only</span>}
      </h2>
      {file.why_not && <p class="soft">{file.why_not}</p>}
      <Editor text={text} readOnly={!file.editable} problems={checked?.problems ?? []} more={checked?.more_problems ?? 0} onInput={setText} />
      <ul class="plain problems">
        {checked?.warnings.map((warning, index) => (
          <li key={index}>
            <span class="tag busy">warning</span> {warning.path && <code>{warning.path}</code>}
            {warning.path && ": "}
            <bdi>{warning.message}</bdi>
          </li>
        ))}
        <More count={checked?.more_warnings ?? 0} />
      </ul>
      {file.editable && (
        <div class="buttons">
          <button
            type="button"
            class="primary"
            disabled={!isChanged || checked === null || checked.problems.length > 0}
            onClick={() => setAsking(true)}
          >
            Save …
          </button>
          <button type="button" disabled={!isChanged} onClick={() => setText(file.text)}>
            Undo all
          </button>
        </div>
      )}
      {isAsking && checked && (
        <Dialog title="Save and take over?" onClose={() => setAsking(false)} wide>
          <Difference diff={checked.diff} />
          <p class="soft">Engines whose settings change restart once their requests are done. The former text is kept as a backup.</p>
          <div class="buttons end">
            <button type="button" onClick={() => setAsking(false)}>
              Cancel
            </button>
            <button type="button" class="primary" onClick={() => void save()}>
              Save
            </button>
          </div>
        </Dialog>
      )}
    </section>
  );
}

/** Has a text checked when it has not changed for a moment; null until it was. */
function useChecked(text: string): Checked | null {
  const [checked, setChecked] = useState<{ text: string; result: Checked } | null>(null);
  useEffect(() => {
    let isOld = false;
    const timer = setTimeout(() => {
      post<Checked>("/admin/config/check", { text }).then(
        (result) => isOld || setChecked({ text, result }),
        () => {}, // the router is away: what is shown says so
      );
    }, CHECK_AFTER_MS);
    return () => {
      isOld = true;
      clearTimeout(timer);
    };
  }, [text]);
  return checked?.text === text ? checked.result : null;
}

/** Has the browser ask before the page is left with changes. */
function useUnsaved(isChanged: boolean): void {
  useEffect(() => {
    if (!isChanged) return;
    const ask = (event: BeforeUnloadEvent): void => event.preventDefault();
    addEventListener("beforeunload", ask);
    return () => removeEventListener("beforeunload", ask);
  }, [isChanged]);
}
