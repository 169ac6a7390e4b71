//! The chat page's files, embedded: the binary serves them without touching the disk.

/// A file of the page.
#[derive(Clone, Copy, Debug)]
pub struct Asset {
    /// Its path below the page, without a slash in front.
    pub path: &'static str,
    /// Its content type.
    pub content_type: &'static str,
    /// Its bytes.
    pub bytes: &'static [u8],
}

macro_rules! assets {
    ($($path:literal: $content_type:expr),* $(,)?) => {
        &[$(Asset {
            path: $path,
            content_type: $content_type,
            bytes: include_bytes!(concat!("../web/", $path)),
        }),*]
    };
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// All of them.
pub const ASSETS: &[Asset] = assets! {
    "index.html": "text/html; charset=utf-8",
    "favicon.svg": "image/svg+xml",
    "api.js": SCRIPT,
    "chat.js": SCRIPT,
    "dom.js": SCRIPT,
    "generate.js": SCRIPT,
    "i18n.js": SCRIPT,
    "markdown.js": SCRIPT,
    "settings.js": SCRIPT,
    "sidebar.js": SCRIPT,
    "store.js": SCRIPT,
    "theme.js": SCRIPT,
    "view.js": SCRIPT,
};

/// The file at `path`; the empty path is the page itself.
pub fn asset(path: &str) -> Option<&'static Asset> {
    let path = if path.is_empty() { "index.html" } else { path };
    ASSETS.iter().find(|asset| asset.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_found_and_nothing_beside_it() {
        assert!(asset("").unwrap().bytes.starts_with(b"<!doctype html>"));
        assert_eq!(asset("api.js").unwrap().content_type, SCRIPT);
        assert!(asset("../Cargo.toml").is_none());
    }
}
