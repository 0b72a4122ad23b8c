/* The controls at the top: stages, passes, heat, weights, theme, help; and the keys that work everywhere. */

const THEMES = ["auto", "light", "dark"];

Object.assign(Viewer.prototype, {
  makeToolbar() {
    const byId = (id) => document.getElementById(id);
    byId("stages").innerHTML = this.stages.map(({ name, title }) => `<button data-stage="${escape(name)}" aria-pressed="false">${escape(title)}</button>`).join("");
    byId("stages").addEventListener("click", ({ target }) => {
      const name = target.dataset.stage;
      if (name) this.showStage(name, target.getAttribute("aria-pressed") !== "true");
    });
    const slider = byId("pass");
    slider.max = this.data.passes.length - 1;
    slider.addEventListener("input", () => this.setPass(+slider.value));
    this.setPass(this.pass);
    byId("heat").innerHTML = [["no heat map", ""], ...HEATS].map(([text, value]) => `<option value="${value}">${text}</option>`).join("");
    byId("heat").addEventListener("change", ({ target }) => this.setHeat(target.value === "" ? null : +target.value));
    byId("weights").addEventListener("click", () => this.setWeights(!this.showsWeights, true));
    byId("theme").addEventListener("click", () => this.setTheme(THEMES[(THEMES.indexOf(this.theme) + 1) % THEMES.length]));
    byId("help").addEventListener("click", () => byId("keys").showModal());
    byId("side").addEventListener("click", () => this.setSide(document.body.classList.contains("wide")));
    this.setTheme(remembered("theme") || "auto");
  },

  setHeat(measure) {
    this.heat = measure;
    document.getElementById("scale").hidden = measure === null;
    this.arrange(this.selected);
    this.panel.render();
  },

  setWeights(isShown, isArranged = false) {
    this.showsWeights = isShown;
    document.getElementById("weights").setAttribute("aria-pressed", isShown);
    if (isArranged) this.arrange(this.selected);
  },

  setSide(isShown) {
    document.body.classList.toggle("wide", !isShown);
    document.getElementById("side").setAttribute("aria-pressed", isShown);
    this.linkPanes();
  },

  setTheme(theme) {
    this.theme = theme;
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    button.textContent = { auto: "◐", light: "☀", dark: "☾" }[theme];
    button.setAttribute("aria-label", `Theme: ${theme}`);
    button.title = `Theme: ${theme}`;
    remember("theme", theme);
  },

  onKey(event) {
    const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "Escape") {
      if (document.querySelector("dialog[open]")) return;
      if (this.search.isOpen() || event.target === this.search.input) {
        this.search.close();
        this.active.svg.focus();
      } else if (this.traced) this.trace(this.active);
      else if (this.selected) this.select(null);
    } else if (event.key === "/" && !isTyping) {
      event.preventDefault();
      this.search.input.focus();
      this.search.input.select();
    } else if (event.key === "?" && !isTyping) document.getElementById("keys").showModal();
  },
});

/* A page from a file may not be allowed to remember anything. */

function remember(key, value) {
  try {
    localStorage.setItem(`systolic.${key}`, value);
  } catch {
    return;
  }
}

function remembered(key) {
  try {
    return localStorage.getItem(`systolic.${key}`);
  } catch {
    return null;
  }
}
