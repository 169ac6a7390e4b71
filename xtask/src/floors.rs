//! The house rule of floors: a crate imports only from lower floors, and only what the table allows.
//!
//! The table is ARCHITECTURE.md's. A crate that it does not know fails the check, so that a new one is placed on purpose.
//! Dependencies of tests count too: a test that needs a higher floor belongs to the higher floor.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;

/// Crate, floor, what it may import.
const TABLE: &[(&str, f32, &[&str])] = &[
    ("wudao-device", 0.0, &[]),
    ("wudao-data", 0.0, &[]),
    ("wudao-comm", 1.0, &["wudao-device"]),
    ("wudao-model", 2.0, &["wudao-device", "wudao-comm"]),
    ("wudao-train", 3.0, &["wudao-model", "wudao-data", "wudao-comm", "wudao-device"]),
    ("wudao-infer", 3.0, &["wudao-model", "wudao-data", "wudao-comm", "wudao-device"]),
    ("wudao-serve", 4.0, &["wudao-infer"]),
    (
        "wudao",
        5.0,
        &["wudao-device", "wudao-data", "wudao-comm", "wudao-model", "wudao-train", "wudao-infer", "wudao-serve"],
    ),
    ("xtask", 0.0, &[]),
];

/// Reads `cargo metadata` and fails on any edge that the table does not allow.
pub fn check() -> Result<()> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(program)
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .context("cannot start cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
    let faults = faults(&edges(&metadata)?);
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(())
}

/// Each crate of the workspace with those it imports from the workspace.
fn edges(metadata: &Value) -> Result<Vec<(String, Vec<String>)>> {
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let name = |value: &Value| value["name"].as_str().map(str::to_owned).context("a package without a name");
    let names: BTreeSet<String> = packages.iter().map(name).collect::<Result<_>>()?;
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().context("a package without dependencies")?;
            let imported: Vec<String> = dependencies.iter().map(name).collect::<Result<_>>()?;
            Ok((name(package)?, imported.into_iter().filter(|imported| names.contains(imported)).collect()))
        })
        .collect()
}

fn faults(edges: &[(String, Vec<String>)]) -> Vec<String> {
    let row = |name: &str| TABLE.iter().find(|(known, ..)| *known == name);
    let mut faults = Vec::new();
    for (name, imports) in edges {
        let Some((_, floor, allowed)) = row(name) else {
            faults.push(format!("{name} is on no floor: add it to xtask/src/floors.rs and ARCHITECTURE.md"));
            continue;
        };
        for import in imports.iter().filter(|import| !allowed.contains(&import.as_str())) {
            let other = row(import).map_or("no floor".into(), |(_, floor, _)| format!("floor {floor}"));
            faults.push(format!("{name} (floor {floor}) may not import {import} ({other})"));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_itself_goes_down() {
        for (name, floor, allowed) in TABLE {
            for import in *allowed {
                let (_, below, _) = TABLE.iter().find(|(known, ..)| known == import).unwrap();
                assert!(below < floor, "{name} on {floor} imports {import} on {below}");
            }
        }
    }

    #[test]
    fn an_edge_upwards_or_sideways_is_found() {
        let edge = |from: &str, to: &str| (from.to_owned(), vec![to.to_owned()]);
        assert!(faults(&[edge("wudao-train", "wudao-model")]).is_empty());
        let found = faults(&[edge("wudao-train", "wudao-infer"), edge("wudao-device", "wudao-comm"), edge("new", "x")]);
        assert_eq!(
            found,
            [
                "wudao-train (floor 3) may not import wudao-infer (floor 3)",
                "wudao-device (floor 0) may not import wudao-comm (floor 1)",
                "new is on no floor: add it to xtask/src/floors.rs and ARCHITECTURE.md",
            ]
        );
    }
}
