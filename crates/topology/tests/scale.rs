//! A thousand nodes: what planning writes does not grow with the mesh.
#![allow(missing_docs, clippy::unwrap_used)]

mod world;

use topology::cluster::plan;
use world::*;

#[test]
fn a_thousand_nodes_fill_sixteen_slices_and_one_change_touches_one() {
    let mut view = cluster_of(1000);
    assert_eq!(view.slices.len(), 16);
    let before = plan(&view);
    assert!(before.is_settled());
    assert_eq!(errors(&view, &before), []);
    stored(&mut view, &name(500)).status = shows(key(2000));
    assert_eq!(plan(&view).touched_slices().len(), 1);
}
