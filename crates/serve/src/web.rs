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

/// The policy to send with each of them, as `Content-Security-Policy`: the page loads and asks nothing but its own server,
/// runs no script that is not a file of its own, and stands in nobody's frame. What a model writes could therefore run
/// nothing even if it became markup, which `markdown.js` rules out already.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; \
                                           frame-ancestors 'none'";

/// All of them.
pub const ASSETS: &[Asset] = assets! {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "favicon.svg": "image/svg+xml",
    "api.js": SCRIPT,
    "app.js": SCRIPT,
    "chat.js": SCRIPT,
    "composer.js": SCRIPT,
    "dom.js": SCRIPT,
    "files.js": SCRIPT,
    "generate.js": SCRIPT,
    "i18n.js": SCRIPT,
    "markdown.js": SCRIPT,
    "notices.js": SCRIPT,
    "panels.js": SCRIPT,
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
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    fn text(asset: &Asset) -> &'static str {
        std::str::from_utf8(asset.bytes).unwrap_or_else(|error| panic!("{}: {error}", asset.path))
    }

    /// What stands between `before` and the next `"`, wherever `before` occurs.
    fn quoted<'a>(source: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
        source.split(before).skip(1).map(|rest| rest.split('"').next().unwrap())
    }

    /// The files that an asset names: what the page loads, what a module imports.
    fn references(asset: &Asset) -> Vec<&'static str> {
        let source = text(asset);
        match asset.path.rsplit('.').next() {
            Some("html") => quoted(source, "href=\"").chain(quoted(source, "src=\"")).collect(),
            Some("js") => quoted(source, " from \"./")
                .chain(quoted(source, "import \"./"))
                .chain(quoted(source, "import(\"./"))
                .collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn the_page_is_found_and_nothing_beside_it() {
        assert!(asset("").unwrap().bytes.starts_with(b"<!doctype html>"));
        assert_eq!(asset("api.js").unwrap().content_type, SCRIPT);
        assert!(asset("../Cargo.toml").is_none());
    }

    #[test]
    fn every_file_is_embedded_once_with_its_type() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("web");
        let files: BTreeSet<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let embedded: BTreeSet<String> = ASSETS.iter().map(|asset| asset.path.to_owned()).collect();
        assert_eq!(files, embedded);
        assert_eq!(embedded.len(), ASSETS.len(), "a file is there twice");
        for asset in ASSETS {
            let wanted = match asset.path.rsplit('.').next().unwrap() {
                "html" => "text/html; charset=utf-8",
                "css" => "text/css; charset=utf-8",
                "js" => SCRIPT,
                "svg" => "image/svg+xml",
                other => panic!("{}: what type has .{other}?", asset.path),
            };
            assert_eq!(asset.content_type, wanted, "{}", asset.path);
        }
    }

    #[test]
    fn every_reference_resolves_and_every_file_is_reached() {
        let mut reached = BTreeSet::from(["index.html"]);
        let mut queue = vec!["index.html"];
        while let Some(path) = queue.pop() {
            for name in references(asset(path).unwrap()) {
                assert!(asset(name).is_some(), "{path} refers to {name}, which is not there");
                if reached.insert(name) {
                    queue.push(name);
                }
            }
        }
        let all: BTreeSet<&str> = ASSETS.iter().map(|asset| asset.path).collect();
        assert_eq!(reached, all, "files that nothing refers to");
    }

    /// What the policy would refuse, or the browser would ask another server for.
    #[test]
    fn nothing_in_it_breaks_the_policy() {
        for asset in ASSETS {
            let forbidden: &[&str] = match asset.path.rsplit('.').next() {
                Some("html") => {
                    &[" style=", "<style", "<script>", " onclick=", "javascript:", "http:", "https:", "data:"]
                }
                Some("css") => &["url(", "@import"],
                Some("js") => &[
                    "innerHTML",
                    "outerHTML",
                    "insertAdjacentHTML",
                    "document.write",
                    "eval(",
                    "new Function",
                    "setAttribute(\"style\"",
                ],
                _ => &["<script", "href="],
            };
            for word in forbidden {
                assert!(!text(asset).contains(word), "{} contains {word}", asset.path);
            }
        }
    }
}
