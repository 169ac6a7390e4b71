//! From many sources to one answer: flag > environment > file > checkpoint > preset > data > default.
//!
//! Each source is laid over the ones below it, key by key, and every key remembers where its value came from: a message
//! can then say which file to correct, and the settings that are saved with a run say how they came about.

use super::schema::Schema;
use super::value;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::PathBuf;
use toml::{Table, Value};

/// Where a value came from, lowest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A fact of the prepared data set.
    Data,
    /// A preset of this name.
    Preset(String),
    /// The `config.json` of a checkpoint that a run begins with.
    Checkpoint(PathBuf),
    /// A TOML file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// An argument.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Data => f.write_str("data set"),
            Origin::Preset(name) => write!(f, "preset {name}"),
            Origin::Checkpoint(path) => write!(f, "checkpoint {}", path.display()),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A setting that cannot be.
#[derive(Debug, PartialEq, Eq)]
pub struct SettingsError {
    /// What is wrong, and where.
    pub what: String,
    /// What to do.
    pub help: Option<String>,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for SettingsError {}

/// The values so far, each with its origin. A value of `None` says that an optional key is absent.
#[derive(Clone, Debug)]
pub struct Layers {
    schema: Schema,
    values: BTreeMap<String, (Option<Value>, Origin)>,
}

impl Layers {
    /// No values.
    pub fn new(schema: Schema) -> Layers {
        Layers { schema, values: BTreeMap::new() }
    }

    /// The keys there are.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The value that holds so far.
    pub fn get(&self, path: &str) -> Option<&Value> {
        self.values.get(path)?.0.as_ref()
    }

    /// Lays the fields of a value under a section.
    pub fn add_value(&mut self, section: &str, of: &impl Serialize, origin: &Origin) -> Result<(), SettingsError> {
        let table =
            Table::try_from(of).map_err(|error| SettingsError { what: format!("{section}: {error}"), help: None })?;
        self.add_at(section, &table, origin)
    }

    /// Lays a table over what is there.
    pub fn add_table(&mut self, table: &Table, origin: &Origin) -> Result<(), SettingsError> {
        self.add_at("", table, origin)
    }

    fn add_at(&mut self, above: &str, table: &Table, origin: &Origin) -> Result<(), SettingsError> {
        for (name, value) in table {
            let path = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
            if let Some(key) = self.schema.get(&path) {
                let value = value::check(&key.kind, value).map_err(|problem| self.wrong(&path, origin, &problem))?;
                self.values.insert(path, (Some(value), origin.clone()));
            } else if !self.schema.is_table(&path) {
                return Err(self.unknown(&path, origin));
            } else if let Value::Table(inner) = value {
                self.add_at(&path, inner, origin)?;
            } else {
                return Err(self.wrong(&path, origin, &format!("expected a table [{path}], found {value}")));
            }
        }
        Ok(())
    }

    /// Lays one value over what is there, as somebody typed it.
    pub fn add_text(&mut self, path: &str, text: &str, origin: &Origin) -> Result<(), SettingsError> {
        let Some(key) = self.schema.get(path) else { return Err(self.unknown(path, origin)) };
        let value = value::parse(key, text).map_err(|problem| self.wrong(path, origin, &problem))?;
        self.values.insert(path.to_owned(), (value, origin.clone()));
        Ok(())
    }

    /// Gives the keys that nobody has named their values.
    pub fn fill(&mut self, table: &Table, origin: &Origin) -> Result<(), SettingsError> {
        let mut given = Layers::new(self.schema.clone());
        given.add_table(table, origin)?;
        for (path, value) in given.values {
            self.values.entry(path).or_insert(value);
        }
        Ok(())
    }

    /// Lays a whole section over all that comes from below: what is not in it is absent, whatever a preset says.
    pub fn replace(&mut self, section: &str, of: &impl Serialize, origin: &Origin) -> Result<(), SettingsError> {
        let below = format!("{section}.");
        self.values.retain(|path, (_, from)| !path.starts_with(&below) || *from > *origin);
        let mut given = Layers::new(self.schema.clone());
        given.add_value(section, of, origin)?;
        for (path, value) in given.values {
            self.values.entry(path).or_insert(value);
        }
        Ok(())
    }

    /// Replaces a value by another that means the same; its origin stays. What nobody gave is a fact of the data.
    pub fn set(&mut self, path: &str, value: Value) {
        let origin = match self.origin(path) {
            Origin::Default => Origin::Data,
            given => given.clone(),
        };
        self.values.insert(path.to_owned(), (Some(value), origin));
    }

    /// Takes values away, so that the key is absent or has its type's default.
    pub fn forget(&mut self, paths: &[&str]) {
        paths.iter().for_each(|path| drop(self.values.remove(*path)));
    }

    /// One section, as its type.
    pub fn section<T: DeserializeOwned>(&self, section: &str) -> Result<T, SettingsError> {
        let below = format!("{section}.");
        let mut root = Table::new();
        for (path, (value, _)) in self.values.range(below.clone()..).take_while(|(path, _)| path.starts_with(&below)) {
            let Some(value) = value else { continue };
            let mut words: Vec<&str> = path[below.len()..].split('.').collect();
            let name = words.pop().unwrap_or_default();
            let table = words.into_iter().fold(&mut root, |table, word| {
                let entry = table.entry(word).or_insert_with(|| Value::Table(Table::new()));
                entry.as_table_mut().expect("the schema has no key that is both a value and a table")
            });
            table.insert(name.to_owned(), value.clone());
        }
        serde_path_to_error::deserialize(Value::Table(root)).map_err(|error| {
            let path = error.path().to_string();
            let path = if path == "." { section.to_owned() } else { format!("{below}{path}") };
            let problem = error.inner().message().to_owned();
            match self.values.get(&path) {
                Some((Some(value), origin)) => self.wrong(&path, origin, &format!("{value} does not fit: {problem}")),
                _ => SettingsError {
                    what: format!("settings [{path}]: {problem}"),
                    help: Some("give the value with --set, in a file with --config, or begin with a --preset".into()),
                },
            }
        })
    }

    /// Where the value of a key came from.
    pub fn origin(&self, path: &str) -> &Origin {
        self.values.get(path).map_or(&Origin::Default, |(_, origin)| origin)
    }

    /// The values as a TOML file, each with a comment that says where it came from.
    pub fn to_toml(&self, sections: &[&str]) -> String {
        let mut tables: BTreeMap<&str, Vec<(&str, &Value, &Origin)>> = BTreeMap::new();
        for (path, (value, origin)) in &self.values {
            let (table, name) = path.rsplit_once('.').unwrap_or(("", path));
            let section = table.split('.').next().unwrap_or_default();
            if let (Some(value), true) = (value, sections.contains(&section)) {
                tables.entry(table).or_default().push((name, value, origin));
            }
        }
        let mut text = String::new();
        for (table, rows) in tables {
            let _ = writeln!(text, "\n[{table}]");
            let lines: Vec<String> = rows.iter().map(|(name, value, _)| format!("{name} = {value}")).collect();
            let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0).min(40);
            for (line, (.., origin)) in lines.iter().zip(&rows) {
                // A file's name may hold anything, a comment may not.
                let origin = origin.to_string().replace(char::is_control, " ");
                let _ = writeln!(text, "{line:<width$}  # {origin}");
            }
        }
        text
    }

    fn unknown(&self, path: &str, origin: &Origin) -> SettingsError {
        let help = match self.schema.nearest(path) {
            Some(near) => format!("the nearest known key is `{near}`"),
            None => "docs/configuration.md lists the keys".to_owned(),
        };
        SettingsError { what: format!("unknown setting `{path}` ({origin})"), help: Some(help) }
    }

    fn wrong(&self, path: &str, origin: &Origin, problem: &str) -> SettingsError {
        SettingsError { what: format!("setting `{path}` ({origin}): {problem}"), help: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize, Serialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        train: Train,
        other: Needy,
    }

    #[derive(Debug, PartialEq, Deserialize, Serialize)]
    struct Needy {
        width: usize,
    }

    #[derive(Debug, PartialEq, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    struct Train {
        steps: u64,
        lr: f64,
        best: Option<u32>,
    }

    impl Default for Train {
        fn default() -> Self {
            Train { steps: 100, lr: 0.1, best: None }
        }
    }

    fn layers() -> Layers {
        let mut layers = Layers::new(Schema::of::<Sample>().unwrap());
        layers.add_value("train", &Train::default(), &Origin::Default).unwrap();
        layers
    }

    fn file(text: &str) -> Result<Layers, SettingsError> {
        let mut layers = layers();
        layers.add_table(&text.parse().unwrap(), &Origin::File("run.toml".into()))?;
        Ok(layers)
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let error = file("[train]\nlrr = 1").unwrap_err();
        assert_eq!(error.what, "unknown setting `train.lrr` (run.toml)");
        assert_eq!(error.help.unwrap(), "the nearest known key is `train.lr`");
        let error = file("[train]\nsteps = \"many\"").unwrap_err();
        assert_eq!(error.what, "setting `train.steps` (run.toml): expected a whole number, found \"many\"");
        let error = file("train = 3").unwrap_err();
        assert_eq!(error.what, "setting `train` (run.toml): expected a table [train], found 3");
        let error = file("[train]\nsteps = -3").unwrap().section::<Train>("train").unwrap_err();
        assert!(error.what.starts_with("setting `train.steps` (run.toml): -3 does not fit"), "{}", error.what);
        let error = Layers::new(Schema::of::<Sample>().unwrap()).section::<Needy>("other").unwrap_err();
        assert_eq!(error.what, "settings [other]: missing field `width`");
    }

    #[test]
    fn a_checkpoint_stands_above_presets_and_below_files() {
        let checkpoint = Origin::Checkpoint("model".into());
        let of = |text: &str, origin: Origin| {
            let mut layers = layers();
            layers.add_table(&text.parse().unwrap(), &origin).unwrap();
            layers.replace("train", &Train { steps: 5, lr: 0.5, best: None }, &checkpoint).unwrap();
            layers.section::<Train>("train").unwrap()
        };
        let preset = of("[train]\nsteps = 1\nbest = 7", Origin::Preset("tiny".into()));
        assert_eq!(preset, Train { steps: 5, lr: 0.5, best: None }, "what the checkpoint does not say is absent");
        let file = of("[train]\nsteps = 1", Origin::File("run.toml".into()));
        assert_eq!(file, Train { steps: 1, lr: 0.5, best: None });
    }

    #[test]
    fn an_optional_value_can_be_taken_away() {
        let mut layers = file("[train]\nbest = 3").unwrap();
        assert_eq!(layers.section::<Train>("train").unwrap().best, Some(3));
        layers.add_text("train.best", "none", &Origin::Flag("--set".into())).unwrap();
        assert_eq!(layers.section::<Train>("train").unwrap().best, None);
    }

    #[test]
    fn the_saved_file_says_where_values_came_from() {
        let mut layers = file("[train]\nlr = 1").unwrap();
        layers.add_text("train.steps", "7", &Origin::Environment("WUDAO_TRAIN_STEPS".into())).unwrap();
        let text = layers.to_toml(&["train"]);
        assert_eq!(text, "\n[train]\nlr = 1.0   # run.toml\nsteps = 7  # environment WUDAO_TRAIN_STEPS\n");
        let again = file(&text).unwrap();
        assert_eq!(again.section::<Train>("train").unwrap(), layers.section::<Train>("train").unwrap());
    }

    proptest! {
        /// Whatever subset of levels names a key, the highest of them holds.
        #[test]
        fn the_highest_level_that_speaks_holds(levels in proptest::collection::vec(any::<[bool; 2]>(), 5)) {
            let mut layers = layers();
            let mut expected = Train::default();
            for (level, [lr, steps]) in levels.iter().enumerate() {
                let number = level as u64 + 1;
                let mut table = Table::new();
                if *lr {
                    table.insert("lr".into(), Value::Float(number as f64));
                    expected.lr = number as f64;
                }
                if *steps {
                    table.insert("steps".into(), Value::Integer(number as i64));
                    expected.steps = number;
                }
                let table = Table::from_iter([("train".to_owned(), Value::Table(table))]);
                layers.add_table(&table, &Origin::Preset(number.to_string())).unwrap();
            }
            prop_assert_eq!(layers.section::<Train>("train").unwrap(), expected);
        }
    }
}
