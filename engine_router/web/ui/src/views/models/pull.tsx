// Asks which model to download from the hub.
import { Dialog } from "../../components/dialog";
import { inSentence } from "../../components/format";
import { attempt } from "../../components/toast";
import { post } from "../../api";
import { follow } from "../../state/actions";
import type { Job } from "../../types";

export function PullDialog({ onClose }: { onClose: () => void }) {
  const submit = (event: SubmitEvent): void => {
    event.preventDefault();
    const form = new FormData(event.currentTarget as HTMLFormElement);
    const name = String(form.get("name")).trim();
    const revision = String(form.get("revision")).trim();
    void attempt(async () => {
      const job = await post<Job>("/admin/pull", { name, mmproj: form.has("mmproj"), ...(revision ? { revision } : {}) });
      follow(job, `${inSentence(job.subject)} is downloaded.`);
      onClose();
    });
  };
  return (
    <Dialog title="Pull a model from the hub" onClose={onClose}>
      <form class="fields" onSubmit={submit}>
        <label>
          Name
          <input name="name" required autofocus spellcheck={false} autocomplete="off" placeholder="hf:unsloth/Qwen3-4B-GGUF:Q4_K_M" />
        </label>
        <label>
          Revision
          <input name="revision" spellcheck={false} autocomplete="off" placeholder="main" />
        </label>
        <label class="check">
          <input name="mmproj" type="checkbox" defaultChecked /> with its projector for images, where it has one
        </label>
        <p class="soft">The name is that of a repository on the hub, with a quantization behind the colon, or a URL of a GGUF file.</p>
        <div class="buttons end">
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" class="primary">
            Download
          </button>
        </div>
      </form>
    </Dialog>
  );
}
