// What ipywidgets cannot do: names and roles for a screen reader, a log that follows its end, a
// focus that is never lost, Enter that comes after the text it sends, Ctrl-Enter in the box of
// several lines; and in Colab a pump: the page asks the kernel for what is new, because Colab may
// not show what a widget says between two requests.
(function (name, flush) {
  let tries = 0;
  (function attach() {
    const fresh = [...document.querySelectorAll("." + name)].filter((root) => !root.dataset.moeChat);
    fresh.forEach(begin);
    if (!fresh.length && ++tries < 1200) setTimeout(attach, 50);
  })();

  function begin(root) {
    root.dataset.moeChat = "on";
    const set = (selector, attributes) => {
      const element = root.querySelector(selector);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      return element;
    };
    root.setAttribute("role", "region");
    root.setAttribute("aria-label", "Chat with the model");
    root.querySelectorAll("textarea, .moe-line input").forEach((box) => { box.dir = "auto"; });
    set(".moe-statusline .widget-html-content", {role: "status", "aria-live": "polite"});
    const log = set(".moe-log",
      {role: "log", "aria-live": "off", "aria-label": "Conversation", tabindex: "0"});
    let following = true; // until someone scrolls up
    const toEnd = () => { if (following) log.scrollTop = log.scrollHeight; };
    log.addEventListener("scroll", () => {
      following = log.scrollHeight - log.scrollTop - log.clientHeight < 30;
    });
    new MutationObserver(toEnd).observe(log, {childList: true, subtree: true, characterData: true});
    toEnd();
    // A button that rests loses the focus: the message box takes it.
    root.addEventListener("click", (event) => {
      if (!event.target.closest("button.moe-turn")) return;
      following = true;
      const boxes = root.querySelectorAll(".moe-line input, .moe-lines textarea");
      [...boxes].find((box) => box.offsetParent)?.focus();
    });
    root.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      const box = event.target;
      // The text goes to the kernel before the key does, and whole.
      if (box.closest(".moe-line")) box.dispatchEvent(new Event("change", {bubbles: true}));
      if (box.tagName !== "TEXTAREA") return;
      event.preventDefault();
      event.stopPropagation();
      if (box.closest(".moe-lines") && (event.ctrlKey || event.metaKey)) {
        box.dispatchEvent(new Event("change", {bubbles: true}));
        root.querySelector(".moe-send").click();
      } else { // JupyterLab keeps Enter from the boxes of ipywidgets 7
        document.execCommand("insertText", false, "\n"); // it can be undone
      }
    }, true);
    if (flush && window.google?.colab) pump(root);
  }

  async function pump(root) {
    while (document.contains(root)) {
      let rest = 125;
      if (root.classList.contains("moe-busy")) {
        try {
          await window.google.colab.kernel.invokeFunction(flush, [], {});
        } catch (error) {
          console.warn(String(error));
          rest = 2000;
        }
      }
      await new Promise((wake) => setTimeout(wake, rest));
    }
  }
})("$NAME", "$FLUSH");
