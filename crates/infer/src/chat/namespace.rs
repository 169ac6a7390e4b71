//! What a template may keep in a namespace.
//!
//! Everything else that a template makes is as deep as its source and its macros are, but what is kept from one turn of a loop to
//! the next can hold what was kept before: `{% set ns.x = [ns.x] %}` grows a list of any depth, and `{% set ns.x = ns %}` one
//! without an end. Whoever writes such a value out, or only forgets it, runs out of stack, which ends the process. So what is
//! assigned to an attribute passes a filter that makes a plain copy of it, of limited depth.

use minijinja::machinery::{ast, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

/// The filter. Unlike a function, no variable of a template can take its place.
pub const PLAIN: &str = "wudao_plain";

/// Depth of what is kept, that of the JSON that comes with a request.
const DEPTH: usize = 128;
/// Values that a call may keep, one by one: one that keeps what it kept before, and one more, for a thousand messages needs a
/// million.
const KEPT: u64 = 4 << 20;

/// The template with every assignment to an attribute passed through [`PLAIN`].
pub fn bounded(source: &str, syntax: SyntaxConfig) -> Result<String, Error> {
    let mut assignments = Vec::new();
    find(&[parse(source, "template", syntax)?], &mut assignments)?;
    let mut out = source.to_owned();
    // From the last to the first, so that offsets stay right.
    assignments.sort_unstable_by_key(|&(start, _)| std::cmp::Reverse(start));
    for (start, end) in assignments {
        // Names, dots, commas and parentheses come before it.
        let equals = start + source[start..end].find('=').ok_or_else(|| error("an assignment without a value"))? + 1;
        out.insert_str(end, &format!("))|{PLAIN}"));
        out.insert_str(equals, " ((");
    }
    Ok(out)
}

fn error(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Adds where assignments to attributes begin and end.
fn find(statements: &[ast::Stmt], found: &mut Vec<(usize, usize)>) -> Result<(), Error> {
    use ast::Stmt;
    for statement in statements {
        match statement {
            Stmt::Set(set) if has_attribute(&set.target) => {
                let span = set.span();
                found.push((span.start_offset as usize, span.end_offset as usize));
            }
            Stmt::SetBlock(set) if has_attribute(&set.target) && set.filter.is_some() => {
                return Err(error("a block that is assigned to an attribute can have no filter here"));
            }
            Stmt::Template(inner) => find(&inner.children, found)?,
            Stmt::ForLoop(inner) => {
                find(&inner.body, found)?;
                find(&inner.else_body, found)?;
            }
            Stmt::IfCond(inner) => {
                find(&inner.true_body, found)?;
                find(&inner.false_body, found)?;
            }
            Stmt::WithBlock(inner) => find(&inner.body, found)?,
            Stmt::SetBlock(inner) => find(&inner.body, found)?,
            Stmt::AutoEscape(inner) => find(&inner.body, found)?,
            Stmt::FilterBlock(inner) => find(&inner.body, found)?,
            Stmt::Macro(inner) => find(&inner.body, found)?,
            Stmt::CallBlock(inner) => find(&inner.macro_decl.body, found)?,
            Stmt::Set(_) | Stmt::EmitExpr(_) | Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) | Stmt::Do(_) => {}
        }
    }
    Ok(())
}

/// Whether any of the targets of an assignment is an attribute.
fn has_attribute(target: &ast::Expr) -> bool {
    match target {
        ast::Expr::Var(_) => false,
        ast::Expr::List(list) => list.items.iter().any(has_attribute),
        _ => true,
    }
}

/// Values kept by a call so far.
struct Kept(u64);

/// A copy of plain data: numbers, text, lists and maps. What comes one by one becomes a list, a namespace a map.
pub fn plain(state: &mut State, value: Value) -> Result<Value, Error> {
    copy(state.get_or_insert_extension(Kept(0)), &value, 0)
}

fn copy(kept: &mut Kept, value: &Value, depth: usize) -> Result<Value, Error> {
    if depth > DEPTH {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("a namespace keeps values of depth {DEPTH} at most"),
        ));
    }
    kept.0 += 1;
    if kept.0 > KEPT {
        return Err(Error::new(ErrorKind::OutOfFuel, format!("a namespace was given more than {KEPT} values")));
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => value.try_iter()?.map(|item| copy(kept, &item, depth + 1)).collect(),
        ValueKind::Map => {
            let pairs = value.try_iter()?.map(|key| Ok((key.clone(), copy(kept, &value.get_item(&key)?, depth + 1)?)));
            Ok(Value::from_pairs(pairs.collect::<Result<Vec<_>, Error>>()?))
        }
        ValueKind::Plain => Err(error("a namespace keeps numbers, text, lists and maps, but no functions")),
        _ => Ok(value.clone()),
    }
}
