// The Probe page: start a model run, follow it, cancel it, show its patterns.
(function () {
  "use strict";

  const POLL_MS = 300;
  let running = null; // the name of the model run that the page follows
  let clicks = [0, 0];

  async function post(route, body) {
    const address = `${window.workbench.prefix()}probing/${route}`;
    const answer = await fetch(address, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    return answer.json();
  }

  function showProgress(text, failed = false) {
    const progress = document.getElementById("probe-said");
    progress.textContent = text;
    progress.className = failed ? "failed" : "muted";
    document.getElementById("probe-cancel").disabled = running === null;
    document.getElementById("probe-start").disabled = running !== null;
  }

  async function start() {
    const value = (id) => document.getElementById(id).value;
    running = "";
    showProgress("starting");
    const request = { text: value("probe-text"), standard: value("probe-standard"), checkpoint: value("probe-checkpoint"), model: value("probe-model") };
    const { job, error } = await post("start", request);
    running = job || null;
    if (error) return showProgress(error, true);
    follow(job);
  }

  async function follow(job) {
    const { state, said, reason } = await window.workbenchPixels.request("probing/status", { job });
    if (job !== running) return;
    if (state === "running") {
      showProgress(said);
      setTimeout(() => follow(job), POLL_MS);
      return;
    }
    running = null;
    showProgress(state === "failed" ? reason : state, state === "failed");
    if (state === "done") showPatterns(job, firstHead());
  }

  function showPatterns(job, at) {
    window.workbenchPatterns.show("probe-patterns", { job }, at, (to) => showPatterns(job, to));
  }

  // Where the app is opened on a model, the page says which head is shown first, and which model run it follows.
  function firstHead() {
    const { layer, head, kind } = document.getElementById("probe-patterns").dataset;
    return layer === undefined ? { layer: 0, head: 0 } : { layer: Number(layer), head: Number(head), kind };
  }

  let followed = "";
  function followFirst() {
    const job = document.getElementById("probe-patterns")?.dataset.job;
    if (!job || job === followed) return;
    followed = running = job;
    follow(job);
  }

  function runProbe(started, cancelled) {
    followFirst();
    if (started > clicks[0] && running === null) start();
    if (cancelled > clicks[1] && running) post("cancel", { job: running });
    clicks = [started || 0, cancelled || 0];
    setTimeout(window.workbenchPatterns.redraw, 0);
  }

  window.dash_clientside.workbench = Object.assign(window.dash_clientside.workbench || {}, { runProbe });
})();
