// The frame around the views: navigation, how the router is, messages.
import { useEffect } from "preact/hooks";
import { Questions } from "./components/dialog";
import { Lazy } from "./components/lazy";
import { Toasts } from "./components/toast";
import { link as streamLink, state } from "./state/events";
import { isAdmin, logOut, needsKey, session } from "./state/session";
import { nextTheme, theme } from "./state/theme";
import { link, place } from "./router";
import { VIEWS, type View } from "./views";
import { Login } from "./views/login";

export function App() {
  const views = VIEWS.filter((view) => !view.admin || isAdmin.value);
  const view = views.find(({ name }) => name === place.value.view) ?? views[0];
  return (
    <>
      <a class="skip" href="#main" onClick={skip}>
        Skip to the content
      </a>
      <header>
        <a class="brand" href={link("")}>
          engine-router
        </a>
        <Navigation views={views} current={view} />
        <Connection />
        <ThemeButton />
        {session.value?.key != null && (
          <button type="button" class="quiet" onClick={() => void logOut()} title={`Key: ${session.value.key}`}>
            Log out
          </button>
        )}
      </header>
      <main id="main" tabIndex={-1}>
        {session.value !== null && !needsKey.value && (view ? <Shown key={view.name} view={view} /> : <NothingToSee />)}
      </main>
      {needsKey.value && <Login />}
      <Questions />
      <Toasts />
    </>
  );
}

function skip(event: Event): void {
  event.preventDefault();
  document.getElementById("main")?.focus();
}

function Navigation({ views, current }: { views: readonly View[]; current: View | undefined }) {
  return (
    <nav aria-label="Views">
      {views.map((view) => (
        <a key={view.name} href={link(view.name)} aria-current={view === current ? "page" : undefined}>
          {view.title}
        </a>
      ))}
    </nav>
  );
}

function Connection() {
  const isLost = streamLink.value === "lost";
  const version = state.value?.version;
  return (
    <span class={isLost ? "connection bad" : "connection soft"} role="status">
      {isLost ? "no connection to the router" : version ? `v${version}` : "connecting …"}
    </span>
  );
}

function ThemeButton() {
  const sign = { auto: "◐", light: "☀", dark: "☾" }[theme.value];
  return (
    <button type="button" class="quiet" aria-label={`Colours: ${theme.value}`} title={`Colours: ${theme.value}`} onClick={nextTheme}>
      <span aria-hidden="true">{sign}</span>
    </button>
  );
}

function NothingToSee() {
  return (
    <>
      <h1>engine-router</h1>
      <p>
        The key <bdi>{session.value?.key}</bdi> may use models, but not see how the router is. An admin's key may.
      </p>
    </>
  );
}

/** Shows a view, which may have to be loaded first. */
function Shown({ view }: { view: View }) {
  useEffect(() => scrollTo(0, 0), [view]);
  if ("load" in view) return <Lazy load={view.load} props={{}} />;
  const { View } = view;
  return <View />;
}
