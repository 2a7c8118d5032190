// Say when the app does not answer: its process has ended, or it is busy for long. The page goes on when it answers.
(function () {
  "use strict";

  const SLOW_MS = 20_000;
  const ENDED = "The app does not answer: its process has ended, or this machine cannot reach it. What you see was read before. Start `workbench app` again at the same port, and this page goes on by itself.";
  const SLOW = "The app has not answered for 20 seconds: it may be busy with a large run. What you see was read before.";
  const REFUSED = "The app was started anew and asks for its token: open the address that `workbench app` printed.";
  let isLeaving = false;

  function show(text) {
    if (isLeaving) return;
    let bar = document.getElementById("not-answering");
    if (!bar) {
      bar = document.createElement("div");
      bar.id = "not-answering";
      bar.className = "wb-banner";
      bar.setAttribute("role", "alert");
      document.body.prepend(bar);
    }
    if (bar.textContent !== text) bar.textContent = text;
  }

  function hide() {
    document.getElementById("not-answering")?.remove();
  }

  // An app that was started anew may show other runs: the page opens again, at the address of what is seen.
  let process = null;
  function meet(name) {
    if (name && process && name !== process) window.location.reload();
    process = name || process;
  }

  const send = window.fetch.bind(window);
  window.fetch = async (...request) => {
    const slow = setTimeout(() => show(SLOW), SLOW_MS);
    try {
      const answer = await send(...request);
      if (answer.status === 401) show(REFUSED);
      else if (answer.status >= 502 && answer.status <= 504) show(ENDED);
      else hide();
      meet(answer.headers.get("X-Workbench-Process"));
      return answer;
    } catch (error) {
      if (error.name !== "AbortError") show(ENDED);
      throw error;
    } finally {
      clearTimeout(slow);
    }
  };
  window.addEventListener("pagehide", () => (isLeaving = true));
  window.addEventListener("beforeunload", () => (isLeaving = true));
  window.addEventListener("pageshow", () => (isLeaving = false));
})();
