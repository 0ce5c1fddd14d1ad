//! Starting small: one node, then a home joins.

use std::process::ExitCode;

use anyhow::Result;
use e2e::images::Set;
use e2e::lab::Lab;
use e2e::scenario::Scenario;
use e2e::{checks, harness, warren};

fn main() -> ExitCode {
    harness::main(
        Scenario::single("t-single"),
        Set::All,
        &[
            ("helm_install_returns_on_one_node", checks::install),
            ("a_home_joins_later", a_home_joins_later),
            ("every_pod_reaches_every_pod", checks::pod_to_pod),
            ("helm_test_passes", checks::helm_test),
        ],
    )
}

fn a_home_joins_later(lab: &Lab) -> Result<()> {
    lab.join(&[lab.node("home-a")?])?;
    warren::wait_ready(lab)
}
