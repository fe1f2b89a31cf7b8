// Asks for the key that the router wants.
import { useState } from "preact/hooks";
import { Dialog } from "../components/dialog";
import { logIn } from "../state/session";

export function Login() {
  const [error, setError] = useState("");
  const [isBusy, setBusy] = useState(false);
  const submit = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    const key = new FormData(event.currentTarget as HTMLFormElement).get("key");
    setBusy(true);
    try {
      await logIn(String(key));
    } catch (failure) {
      setError(failure instanceof Error ? failure.message : String(failure));
    } finally {
      setBusy(false);
    }
  };
  return (
    <Dialog title="This router asks for a key">
      <form onSubmit={(event) => void submit(event)}>
        <label>
          Key
          <input name="key" type="password" autocomplete="current-password" required autofocus spellcheck={false} />
        </label>
        <p class="bad" role="alert">
          {error}
        </p>
        <div class="buttons end">
          <button type="submit" class="primary" disabled={isBusy}>
            Go on
          </button>
        </div>
      </form>
    </Dialog>
  );
}
