// A part of the page that is loaded when it is wanted first.
import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";

interface LazyProps<Props> {
  /** Loads the module; always the same function, or it is loaded again. */
  load: () => Promise<{ default: ComponentType<Props> }>;
  props: Props;
}

export function Lazy<Props>({ load, props }: LazyProps<Props>) {
  const [Component, setComponent] = useState<ComponentType<Props> | null>(null);
  const [isLost, setLost] = useState(false);
  useEffect(() => {
    let isWanted = true;
    load().then(
      (loaded) => isWanted && setComponent(() => loaded.default),
      () => isWanted && setLost(true),
    );
    return () => {
      isWanted = false;
    };
  }, [load]);
  if (isLost) {
    return (
      <p class="bad" role="alert">
        This part of the page cannot be loaded. The router may have a new version: load the page again.
      </p>
    );
  }
  return Component && <Component {...(props as Props & object)} />;
}
