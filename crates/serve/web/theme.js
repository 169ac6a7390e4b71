// The colours, before the first paint: a plain script in the head, so that a dark page never flashes white.
// `data-theme` is "light" or "dark"; without it the system decides.
try {
    const theme = JSON.parse(localStorage.getItem("wudao-chat.preferences"))?.theme;
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
    // Nothing kept, or nothing readable: the system decides.
}
