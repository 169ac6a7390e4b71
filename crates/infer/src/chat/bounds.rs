//! What a template's values may cost.
//!
//! [`minijinja`] counts instructions, and the text that was written after it was written. One value can undo that: after forty
//! times `{% set x = [x, x] %}` a few bytes of source stand for 2⁴⁰ elements, which `{{ x }}`, `x == y` or `x | string` go through
//! in one instruction. And what is kept from one turn of a loop to the next can hold what was kept before: `{% set ns.x = [ns.x]
//! %}` makes a list of any depth, `{% set ns.x = ns %}` one without an end, and whoever writes it, or only forgets it, runs out of
//! stack, which ends the process.
//!
//! So filters are put into the source, where its syntax tree says. [`meter`] stands wherever a value is gone through: before
//! operators, filters, tests, arguments and output (methods call [`walk`]). It walks the value first, on account of the call; [`count`],
//! where only a list itself is gone through, as in loops, counts. [`plain`] makes what is assigned to an attribute a plain copy, of
//! limited depth; [`factor`] and [`times`] meter what a multiplication will make; [`step`] makes a slice's step a number that can be
//! negated. None of them changes what a template means.

use minijinja::machinery::{ast, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// The filters' names: no variable of a template can take the place of a filter.
const METER: &str = "wudao_meter";
const COUNT: &str = "wudao_count";
const PLAIN: &str = "wudao_plain";
const STEP: &str = "wudao_step";
const FACTOR: &str = "wudao_factor";
const TIMES: &str = "wudao_times";

/// Depth of what a namespace keeps, that of the JSON that comes with a request.
const DEPTH: usize = 128;
/// Bytes of text that count as a value …
const BYTES: u64 = 64;
/// … of those that a call may go through: a second at most.
const VALUES: u64 = 4 << 20;

/// Adds the filters that [`bounded`] names.
pub fn add_filters(environment: &mut Environment) {
    environment.add_filter(METER, meter);
    environment.add_filter(COUNT, count);
    environment.add_filter(PLAIN, plain);
    environment.add_filter(STEP, step);
    environment.add_filter(FACTOR, factor);
    environment.add_filter(TIMES, times);
}

/// The template with its values metered.
pub fn bounded(source: &str, syntax: SyntaxConfig) -> Result<String, Error> {
    let mut edits = Edits { source, opens: Vec::new(), closes: Vec::new() };
    edits.statements(&[parse(source, "template", syntax)?])?;
    Ok(edits.apply())
}

fn error(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// What is to be inserted, and before which byte: of two at the same place, outer ones open first and close last.
struct Edits<'a> {
    source: &'a str,
    opens: Vec<(usize, &'static str)>,
    closes: Vec<(usize, String)>,
}

impl Edits<'_> {
    fn apply(mut self) -> String {
        // Found from the outside in.
        self.closes.reverse();
        self.closes.sort_by_key(|&(at, _)| at);
        self.opens.sort_by_key(|&(at, _)| at);
        let (mut opens, mut closes) = (self.opens.into_iter().peekable(), self.closes.into_iter().peekable());
        let (mut out, mut done) = (String::new(), 0);
        while let Some(at) = opens.peek().map(|edit| edit.0).into_iter().chain(closes.peek().map(|edit| edit.0)).min() {
            out.push_str(&self.source[done..at]);
            done = at;
            while let Some((_, text)) = closes.next_if(|edit| edit.0 == at) {
                out.push_str(&text);
            }
            while let Some((_, text)) = opens.next_if(|edit| edit.0 == at) {
                out.push_str(text);
            }
        }
        out + &self.source[done..]
    }

    fn statements(&mut self, statements: &[ast::Stmt]) -> Result<(), Error> {
        use ast::Stmt;
        for statement in statements {
            match statement {
                Stmt::Template(inner) => self.statements(&inner.children)?,
                Stmt::EmitExpr(inner) => self.used(&inner.expr),
                Stmt::ForLoop(inner) => {
                    self.counted(&inner.iter);
                    inner.filter_expr.iter().for_each(|expr| self.counted(expr));
                    self.statements(&inner.body)?;
                    self.statements(&inner.else_body)?;
                }
                Stmt::IfCond(inner) => {
                    self.counted(&inner.expr);
                    self.statements(&inner.true_body)?;
                    self.statements(&inner.false_body)?;
                }
                Stmt::WithBlock(inner) => {
                    inner.assignments.iter().for_each(|(_, expr)| self.inside(expr));
                    self.statements(&inner.body)?;
                }
                Stmt::Set(inner) => {
                    if has_attribute(&inner.target) {
                        let span = inner.span();
                        let (start, end) = (span.start_offset as usize, span.end_offset as usize);
                        // Names, dots, commas and parentheses come before it.
                        let equals = self.source[start..end].find('=').ok_or_else(|| error("nothing is assigned"))?;
                        self.opens.push((start + equals + 1, " (("));
                        self.closes.push((end, format!("))|{PLAIN}")));
                    }
                    self.inside(&inner.expr);
                }
                Stmt::SetBlock(inner) => {
                    if has_attribute(&inner.target) && inner.filter.is_some() {
                        return Err(error("a block that is assigned to an attribute can have no filter here"));
                    }
                    inner.filter.iter().for_each(|expr| self.inside(expr));
                    self.statements(&inner.body)?;
                }
                Stmt::AutoEscape(inner) => self.statements(&inner.body)?,
                Stmt::FilterBlock(inner) => {
                    self.inside(&inner.filter);
                    self.statements(&inner.body)?;
                }
                Stmt::Macro(inner) => {
                    inner.defaults.iter().for_each(|expr| self.inside(expr));
                    self.statements(&inner.body)?;
                }
                Stmt::CallBlock(inner) => {
                    self.call(&inner.call);
                    inner.macro_decl.defaults.iter().for_each(|expr| self.inside(expr));
                    self.statements(&inner.macro_decl.body)?;
                }
                Stmt::Do(inner) => self.call(&inner.call),
                Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) => {}
            }
        }
        Ok(())
    }

    /// An expression whose value is gone through, by this filter first.
    fn passes(&mut self, expr: &ast::Expr, filter: &'static str) {
        use ast::Expr;
        match expr {
            // The value is one of several that are not metered yet.
            Expr::IfExpr(inner) => {
                self.counted(&inner.test_expr);
                self.passes(&inner.true_expr, filter);
                inner.false_expr.iter().for_each(|expr| self.passes(expr, filter));
            }
            Expr::BinOp(inner) if is_logic(inner.op) => {
                [&inner.left, &inner.right].into_iter().for_each(|expr| self.passes(expr, filter));
            }
            // What it was made of has been metered.
            Expr::Const(_) | Expr::UnaryOp(_) | Expr::BinOp(_) | Expr::Compare(_) | Expr::Test(_) => self.inside(expr),
            // Calls that end in text, some of which minijinja knows by their form.
            Expr::Call(call) if is_special(&call.expr) => self.inside(expr),
            _ => {
                self.closes.push((expr.span().end_offset as usize, format!("|{filter}")));
                self.inside(expr);
            }
        }
    }

    /// Puts a filter behind an expression whose parts hold together less than a filter does.
    fn whole(&mut self, expr: &ast::Expr, filter: &'static str) {
        self.opens.push((start(expr), "("));
        self.closes.push((expr.span().end_offset as usize, format!(")|{filter}")));
    }

    fn used(&mut self, expr: &ast::Expr) {
        self.passes(expr, METER);
    }

    fn counted(&mut self, expr: &ast::Expr) {
        self.passes(expr, COUNT);
    }

    /// The expressions inside of one.
    fn inside(&mut self, expr: &ast::Expr) {
        use ast::Expr;
        match expr {
            Expr::Var(_) | Expr::Const(_) => {}
            Expr::Slice(inner) => {
                inner.step.iter().for_each(|step| self.whole(step, STEP));
                self.inside(&inner.expr);
                [&inner.start, &inner.stop, &inner.step].into_iter().flatten().for_each(|expr| self.inside(expr));
            }
            Expr::UnaryOp(inner) => self.counted(&inner.expr),
            Expr::BinOp(inner) if is_logic(inner.op) => {
                self.counted(&inner.left);
                self.inside(&inner.right);
            }
            // A list, or text, may come to be any number of times as long.
            Expr::BinOp(inner) if matches!(inner.op, ast::BinOpKind::Mul) => {
                for (factor, filter) in [(&inner.left, FACTOR), (&inner.right, TIMES)] {
                    self.whole(factor, filter);
                    self.inside(factor);
                }
            }
            Expr::BinOp(inner) => [&inner.left, &inner.right].into_iter().for_each(|expr| self.used(expr)),
            Expr::Compare(inner) => {
                self.used(&inner.expr);
                inner.ops.iter().for_each(|op| self.used(&op.expr));
            }
            Expr::IfExpr(inner) => {
                self.counted(&inner.test_expr);
                self.inside(&inner.true_expr);
                inner.false_expr.iter().for_each(|expr| self.inside(expr));
            }
            Expr::Filter(inner) => {
                let filter = if FLAT.contains(&inner.name) { COUNT } else { METER };
                inner.expr.iter().for_each(|expr| self.passes(expr, filter));
                self.arguments(&inner.args);
            }
            // The others ask for the kind alone.
            Expr::Test(inner) if inner.args.is_empty() => self.inside(&inner.expr),
            Expr::Test(inner) => {
                self.used(&inner.expr);
                self.arguments(&inner.args);
            }
            Expr::GetAttr(inner) => self.inside(&inner.expr),
            Expr::GetItem(inner) => {
                self.inside(&inner.expr);
                self.used(&inner.subscript_expr);
            }
            Expr::Call(inner) => self.call(inner),
            Expr::List(inner) => inner.items.iter().for_each(|expr| self.inside(expr)),
            Expr::Tuple(inner) => inner.items.iter().for_each(|expr| self.inside(expr)),
            Expr::Map(inner) => {
                inner.keys.iter().for_each(|expr| self.used(expr));
                inner.values.iter().for_each(|expr| self.inside(expr));
            }
        }
    }

    /// What a method is called on is metered when minijinja asks us for the method ([`walk`]).
    fn call(&mut self, call: &ast::Call) {
        self.inside(&call.expr);
        self.arguments(&call.args);
    }

    fn arguments(&mut self, arguments: &[ast::CallArg]) {
        use ast::CallArg::{Kwarg, KwargSplat, Pos, PosSplat};
        for Pos(expr) | Kwarg(_, expr) | PosSplat(expr) | KwargSplat(expr) in arguments {
            self.used(expr);
        }
    }
}

/// Where an expression begins; the span of one that is written behind another begins with the operator. Whether before a
/// parenthesis or behind it is the same to who opens another.
fn start(expr: &ast::Expr) -> usize {
    use ast::Expr;
    match expr {
        Expr::Slice(inner) => start(&inner.expr),
        Expr::GetAttr(inner) => start(&inner.expr),
        Expr::GetItem(inner) => start(&inner.expr),
        Expr::Call(inner) => start(&inner.expr),
        Expr::Test(inner) => start(&inner.expr),
        Expr::Filter(inner) => inner.expr.as_ref().map_or(expr.span().start_offset as usize, start),
        Expr::IfExpr(inner) => start(&inner.true_expr),
        Expr::BinOp(inner) => start(&inner.left),
        Expr::Compare(inner) => start(&inner.expr),
        _ => expr.span().start_offset as usize,
    }
}

/// Filters that look at no more than a list itself.
const FLAT: [&str; 11] =
    ["length", "count", "first", "last", "default", "d", "reverse", "selectattr", "rejectattr", "items", "bool"];

/// `and` and `or`, whose value is one of theirs.
fn is_logic(op: ast::BinOpKind) -> bool {
    matches!(op, ast::BinOpKind::ScAnd | ast::BinOpKind::ScOr)
}

/// A name that has a meaning of its own.
fn is_special(expr: &ast::Expr) -> bool {
    matches!(expr, ast::Expr::Var(name) if ["loop", "caller", "self", "super"].contains(&name.id))
}

/// Whether any of the targets of an assignment is an attribute.
fn has_attribute(target: &ast::Expr) -> bool {
    match target {
        ast::Expr::Var(_) => false,
        ast::Expr::List(list) => list.items.iter().any(has_attribute),
        _ => true,
    }
}

/// What a call may still go through, and the factors that wait for what they are multiplied by.
struct Left {
    values: u64,
    factors: Vec<Factor>,
}

impl Left {
    fn of<'a>(state: &'a mut State<'_, '_>) -> &'a mut Left {
        state.get_or_insert_extension(Left { values: VALUES, factors: Vec::new() })
    }

    fn take(&mut self, values: u64) -> Result<(), Error> {
        let left = self.values.checked_sub(values);
        self.values = left
            .ok_or_else(|| Error::new(ErrorKind::OutOfFuel, format!("more than {VALUES} values are gone through")))?;
        Ok(())
    }
}

/// The value, if it is not too much to go through. What comes one by one becomes a list, since it may come but once.
fn meter(state: &mut State, value: Value) -> Result<Value, Error> {
    let value = count(state, value)?;
    walk(state, &value)?;
    Ok(value)
}

/// The value, with a list for what comes one by one.
fn count(state: &mut State, value: Value) -> Result<Value, Error> {
    if value.kind() != ValueKind::Iterable {
        return Ok(value);
    }
    let left = Left::of(state);
    value.try_iter()?.map(|item| left.take(1).map(|()| item)).collect()
}

/// What a value is to a product: a number, which repeats the other, or what may be repeated, of so many bytes.
enum Factor {
    Times(u64),
    Bytes(u64),
}

/// The value, which the value of [`times`] that follows is multiplied by.
fn factor(state: &mut State, value: Value) -> Result<Value, Error> {
    let value = count(state, value)?;
    let before = Left::of(state).values;
    walk(state, &value)?;
    let left = Left::of(state);
    left.factors.push(if value.is_number() {
        Factor::Times(value.as_i64().map_or(u64::MAX, |times| times.max(0).cast_unsigned()))
    } else {
        Factor::Bytes(value.as_bytes().map_or(BYTES * (before - left.values), |bytes| bytes.len() as u64))
    });
    Ok(value)
}

/// The value, if its product with that of the last [`factor`] is not too much.
fn times(state: &mut State, value: Value) -> Result<Value, Error> {
    let value = factor(state, value)?;
    let left = Left::of(state);
    use Factor::{Bytes, Times};
    if let [Some(Times(times)), Some(Bytes(bytes))] | [Some(Bytes(bytes)), Some(Times(times))] =
        [left.factors.pop(), left.factors.pop()]
    {
        left.take(times.saturating_mul(bytes) / BYTES)?;
    }
    Ok(value)
}

/// The step of a slice. minijinja 3.1 negates it, which the smallest integer overflows; the next takes the same elements.
fn step(value: Value) -> Value {
    if value.as_i64() == Some(i64::MIN) { Value::from(i64::MIN + 1) } else { value }
}

/// Goes through a value, or refuses to.
pub fn walk(state: &mut State, value: &Value) -> Result<(), Error> {
    walk_on(Left::of(state), value)
}

fn walk_on(left: &mut Left, value: &Value) -> Result<(), Error> {
    left.take(1 + value.as_bytes().map_or(0, |bytes| bytes.len() as u64 / BYTES))?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => value.try_iter()?.try_for_each(|item| walk_on(left, &item)),
        ValueKind::Map => value.try_iter()?.try_for_each(|key| {
            walk_on(left, &key)?;
            walk_on(left, &value.get_item(&key)?)
        }),
        _ => Ok(()),
    }
}

/// A copy of plain data: numbers, text, lists and maps. What comes one by one becomes a list, a namespace a map.
fn plain(state: &mut State, value: Value) -> Result<Value, Error> {
    copy(Left::of(state), &value, 0)
}

fn copy(left: &mut Left, value: &Value, depth: usize) -> Result<Value, Error> {
    if depth > DEPTH {
        let what = format!("a namespace keeps values of depth {DEPTH} at most");
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    left.take(1)?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => value.try_iter()?.map(|item| copy(left, &item, depth + 1)).collect(),
        ValueKind::Map => {
            let pairs = value.try_iter()?.map(|key| Ok((key.clone(), copy(left, &value.get_item(&key)?, depth + 1)?)));
            Ok(Value::from_pairs(pairs.collect::<Result<Vec<_>, Error>>()?))
        }
        ValueKind::Plain => Err(error("a namespace keeps numbers, text, lists and maps, but no functions")),
        _ => Ok(value.clone()),
    }
}
