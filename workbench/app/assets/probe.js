// The Probe page: start a model run, follow it, cancel it, show its patterns; what is shown stands in the address.
(function () {
  "use strict";

  const POLL_MS = 300;
  // Longer addresses are cut off by servers and by those that pass them on.
  const MOST_IN_ADDRESS = 6000;
  const TOO_LONG = "this text is too long for an address: a link or a reload opens the page without it";
  const CONTROLS = { text: "probe-text", standard: "probe-standard", ckpt: "probe-checkpoint", model: "probe-model" };
  const OWN_TEXT = "my text";
  const SILENT = (error) => `the app does not answer (${error.message}); start it again`;

  let running = null; // the name of the model run that the page follows
  let clicks = [0, 0];
  let applied = null; // what of the address the controls and the result show
  let current = null; // the name of the model run whose result is shown
  let more = {}; // the parameters of the address
  let shown = null; // what the patterns were last asked to show

  async function post(route, body) {
    const address = `${window.workbench.prefix()}probing/${route}`;
    const answer = await fetch(address, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    return answer.json();
  }

  function showProgress(text, failed = false) {
    const progress = document.getElementById("probe-said");
    if (!progress) return;
    progress.textContent = text;
    progress.className = failed ? "failed" : "muted";
    document.getElementById("probe-cancel").disabled = running === null;
    document.getElementById("probe-start").disabled = running !== null;
  }

  const value = (id) => document.getElementById(id).value;
  const request = () => ({ text: value("probe-text"), standard: value("probe-standard"), checkpoint: value("probe-checkpoint"), model: value("probe-model") });

  // What the address holds of a request; `mixer` and `shown` name the head.
  function parameters({ text, standard, checkpoint, model }) {
    const isOwn = standard === OWN_TEXT;
    const fits = encodeURIComponent(text).length <= MOST_IN_ADDRESS;
    return { text: isOwn && fits ? text : "", standard: isOwn ? "" : standard, ckpt: model.trim() ? "" : checkpoint, model: model.trim() };
  }

  const keyOf = (more) => JSON.stringify(Object.keys(CONTROLS).map((name) => more[name] || ""));

  async function start() {
    const asked = request();
    const named = parameters(asked);
    const isKnown = keyOf(named) === applied;
    applied = keyOf(named);
    // Another text opens at its own farthest-looking head; a head that a link names stays.
    const set = isKnown || !current ? named : { ...named, shown: "", mixer: "" };
    more = { ...more, ...set };
    window.workbench.jump({ set });
    const isLost = asked.standard === OWN_TEXT && !named.text;
    await run(asked, isLost ? TOO_LONG : "");
  }

  async function run(asked, remark = "") {
    running = "";
    showProgress("starting");
    let answer;
    try {
      answer = await post("start", asked);
    } catch (error) {
      answer = { error: SILENT(error) };
    }
    running = answer.job || null;
    if (answer.error) return showProgress(answer.error, true);
    follow(answer.job, remark);
  }

  async function follow(job, remark = "") {
    let status;
    try {
      status = await window.workbenchPixels.request("probing/status", { job });
    } catch (error) {
      status = { state: "failed", said: "", note: "", reason: SILENT(error) };
    }
    if (job !== running) return;
    const { state, said, note, reason } = status;
    const lines = (text) => [note, text, remark].filter(Boolean).join(" · ");
    if (state === "running") {
      showProgress(lines(said));
      setTimeout(() => follow(job, remark), POLL_MS);
      return;
    }
    running = null;
    showProgress(lines(state === "failed" ? reason : state === "done" ? said : state), state === "failed");
    if (state === "done") {
      current = job;
      showPatterns(job, headOfAddress());
    }
  }

  // The head that the address names, or that the app was opened at; null opens the one that looks the farthest.
  function headOfAddress() {
    const match = /^L(\d+)H(\d+)$/.exec(more.shown || "");
    const { job, layer, head, kind } = document.getElementById("probe-patterns").dataset;
    if (!match && job && [job, null].includes(current)) return { layer: Number(layer), head: Number(head), kind };
    return match && { layer: Number(match[1]), head: Number(match[2]), ...(more.mixer ? { kind: more.mixer } : {}) };
  }

  function showPatterns(job, at) {
    const key = JSON.stringify([job, at]);
    if (key === shown) return;
    shown = key;
    const open = (to) => window.workbench.jump({ set: { shown: `L${to.layer}H${to.head}`, mixer: to.kind || "" }, replace: true });
    window.workbenchPatterns.show("probe-patterns", { job }, at, open);
  }

  // Bring the page to what the address says: another text, or another head of the same.
  let waiting = null;
  async function openAddress(view, tries = 100) {
    clearTimeout(waiting);
    if (!view || view.page !== "probe") return;
    const isLaidOut = Object.values(CONTROLS).every((id) => document.getElementById(id));
    if (!isLaidOut || (!value("probe-checkpoint") && tries > 0)) {
      waiting = setTimeout(openAddress, 50, view, tries - isLaidOut); // until the server has named the checkpoints
      return;
    }
    more = Object.fromEntries(view.more || []);
    if (keyOf(more) === applied) {
      if (current && running === null) showPatterns(current, headOfAddress());
      return;
    }
    const isFirst = applied === null;
    applied = keyOf(more);
    if (isFirst && applied === keyOf({})) return followFirst();
    const asked = { ...request(), ...(more.ckpt || more.model ? { checkpoint: more.ckpt || "", model: more.model || "" } : {}) };
    if (more.text || more.standard) Object.assign(asked, { text: more.text || asked.text, standard: more.standard || OWN_TEXT });
    const set = (id, to) => window.dash_clientside.set_props(id, { value: to });
    set("probe-text", asked.text);
    set("probe-standard", asked.standard);
    if (asked.checkpoint) set("probe-checkpoint", asked.checkpoint);
    set("probe-model", asked.model);
    await showKept(asked);
  }

  // Where the app is opened on a model, the page follows the model run that it began with.
  function followFirst() {
    const { job } = document.getElementById("probe-patterns").dataset;
    if (!job) return;
    running = job;
    follow(job);
  }

  // Show the result of a text if the app keeps it; nothing is run.
  async function showKept(asked) {
    let answer;
    try {
      answer = await post("find", asked);
    } catch (error) {
      answer = { error: SILENT(error) };
    }
    if (answer.job) {
      running = answer.job;
      return follow(answer.job);
    }
    current = shown = null;
    document.getElementById("probe-patterns").replaceChildren();
    showProgress(answer.error || "no result of this text is kept: Run makes it", Boolean(answer.error));
  }

  function runProbe(started, cancelled, view) {
    if (started > clicks[0] && running === null) start();
    if (cancelled > clicks[1] && running) post("cancel", { job: running });
    clicks = [started || 0, cancelled || 0];
    openAddress(view);
    setTimeout(window.workbenchPatterns.redraw, 0);
  }

  // Who writes a text wants that one run, not the standard probe that was chosen before.
  document.addEventListener("input", (event) => {
    if (event.target.id === "probe-text") window.dash_clientside.set_props("probe-standard", { value: OWN_TEXT });
  });

  window.dash_clientside.workbench = Object.assign(window.dash_clientside.workbench || {}, { runProbe });
})();
