// The Probe page: start a model run, follow it, end it, show what it left.
(function () {
  "use strict";

  const POLL_MS = 300;
  let running = null; // the name of the model run that is followed
  let clicks = [0, 0];

  async function post(route, body) {
    const address = `${window.workbench.prefix()}probing/${route}`;
    const answer = await fetch(address, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    return answer.json();
  }

  function say(text, failed = false) {
    const said = document.getElementById("probe-said");
    said.textContent = text;
    said.className = failed ? "failed" : "muted";
    document.getElementById("probe-cancel").disabled = running === null;
    document.getElementById("probe-start").disabled = running !== null;
  }

  async function start() {
    const value = (id) => document.getElementById(id).value;
    running = "";
    say("starting");
    const asked = { text: value("probe-text"), standard: value("probe-standard"), checkpoint: value("probe-checkpoint") };
    const { job, error } = await post("start", asked);
    running = job || null;
    if (error) return say(error, true);
    follow(job);
  }

  async function follow(job) {
    const { state, said, reason } = await window.workbenchPixels.fetched("probing/status", { job });
    if (job !== running) return;
    if (state === "running") {
      say(said);
      setTimeout(() => follow(job), POLL_MS);
      return;
    }
    running = null;
    say(state === "failed" ? reason : state, state === "failed");
    if (state === "done") shown(job, { layer: 0, head: 0 });
  }

  function shown(job, at) {
    window.workbenchPatterns.show("probe-patterns", { job }, at, (to) => shown(job, to));
  }

  function probed(started, cancelled) {
    if (started > clicks[0] && running === null) start();
    if (cancelled > clicks[1] && running) post("cancel", { job: running });
    clicks = [started || 0, cancelled || 0];
    setTimeout(window.workbenchPatterns.redraw, 0);
  }

  window.dash_clientside.workbench = Object.assign(window.dash_clientside.workbench || {}, { probed });
})();
